"""What is kept of a run: ``run.json`` with everything that its figures depend on."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch

from kssm.models.registry import name_of
from kssm.training.config import PretrainConfig

RECORD_FILE = "run.json"


def describe_run(
    config: PretrainConfig, device: torch.device, ranks: int, commit: str | None = None
) -> dict[str, Any]:
    """Configuration, commit (by default that of the working tree, if it is one) and machine."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    described = asdict(config)
    described["model"]["backbone"]["model"] = name_of(config.model.backbone)
    return {
        "config": described,
        "commit": commit or _commit(),
        "torch": torch.__version__,
        "device": f"{ranks} x {name or device.type}",
    }


def write_record(folder: Path, entries: Mapping[str, Any]) -> None:
    """Write ``entries`` over those of the folder's record; others stay as they are."""
    record = {**read_record(folder), **entries}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any]:
    """The folder's record, empty if there is none."""
    path = folder / RECORD_FILE
    if not path.is_file():
        return {}
    return cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))


def _commit() -> str | None:
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(  # noqa: S603  a constant command
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
