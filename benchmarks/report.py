"""What every benchmark ends with: one line of JSON that says where the numbers come from."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"

Value = str | int | float | bool | None
Row = dict[str, Value]


def finish(name: str, device: torch.device, rows: list[Row], *, save: bool) -> None:
    """Print the JSON line and, with ``save``, keep it as benchmarks/results/NAME.json."""
    line = json.dumps({"benchmark": name, **machine(device), "results": rows})
    if save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(line + "\n")
    print(line)


def machine(device: torch.device) -> Row:
    """Commit, device and the versions that decide the numbers."""
    return {
        "commit": _commit(),
        "device": device_name(device),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
    }


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def table(rows: list[Row]) -> str:
    """Rows with the same keys as aligned text."""
    names = list(rows[0])
    cells = [names, *([_text(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    )


def _text(value: Value) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _commit() -> str | None:
    """The checkout's commit, with a plus when files have changed; None outside a checkout."""
    here = Path(__file__).parent
    try:
        commit = _git("rev-parse", "--short", "HEAD", cwd=here)
        return commit + ("+" if _git("status", "--porcelain", "-uno", cwd=here) else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
