"""Speed of the matrix-state scan beside other chunked scans, and beside what the GPU could do.

    python -m benchmarks.ops_matrix [--save] [--only NAME ...] [--gradients NAME ...]

Passes are CUDA graphs, so that times are the device's whatever the host does meanwhile. The limit
is the larger of two times: copying x and y at the rate of a plain copy, and the matrix products of
one pass at the rate of a large product, both measured in the same run. Peers that are not installed
(mamba-ssm, flash-linear-attention) or refuse a pass have no time.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

import torch

from benchmarks.models import captured, median_ms
from benchmarks.peers_matrix import CONTENDERS, Case
from benchmarks.report import Row, finish, table

GPU_SHAPES = ((64, 4096), (8, 32_768), (1, 262_144))
CPU_SHAPES = ((2, 256),)
CHUNK = 64


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="keep the line in benchmarks/results/")
    parser.add_argument("--only", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--gradients", nargs="+", choices=list(CONTENDERS), help="default: --only")
    parser.add_argument("--widths", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows: list[Row] = []
    copy, product = rates(device, options.repeats)
    shapes, heads, values = GPU_SHAPES, 16, 64
    if device.type == "cpu":
        shapes, heads, values = CPU_SHAPES, 2, 16
    for width in options.widths if device.type == "cuda" else (16,):
        for batch, tokens in shapes:
            case = Case(batch, tokens, heads, values, width, device)
            limit = limit_ms(case, copy, product)
            names = {"forward": options.only, "both": options.gradients or options.only}
            rows += measure(case, limit, names, options.repeats)
    columns = dict.fromkeys(column for row in rows for column in row)
    print(table([{column: row.get(column) for column in columns} for row in rows]))
    finish("ops_matrix", device, rows, save=options.save)


def measure(
    case: Case, limit: float, names: Mapping[str, Sequence[str]], repeats: int
) -> list[Row]:
    """Forward alone and forward with backward, each for its contenders that are installed."""
    rows: list[Row] = []
    for kind, measured in names.items():
        row: Row = {
            "pass": kind,
            "batch": case.batch,
            "tokens": case.tokens,
            "width": case.width,
            "limit_ms": limit if kind == "forward" else None,
        }
        for name in CONTENDERS:
            found = contender_ms(name, kind, case, repeats) if name in measured else None
            row[f"{name}_ms"] = found
        rows.append(row | ratios(row))
        print(rows[-1], flush=True)
    return rows


def ratios(row: Row) -> Row:
    """Our time as a share of each peer's."""
    mine = row.get("ours_ms")
    found: Row = {}
    for name in CONTENDERS:
        theirs = row[f"{name}_ms"]
        if name != "ours" and isinstance(theirs, float) and isinstance(mine, float):
            found[f"ours/{name}"] = mine / theirs
    return found


def contender_ms(name: str, kind: str, case: Case, repeats: int) -> float | None:
    """Median duration of one pass; None without the peer's package, or where it refuses."""
    try:
        contender = CONTENDERS[name](case)
        run = contender.forward() if kind == "forward" else contender.both()
        return median_ms(captured(run, case.device), case.device, repeats, queued=3)
    except (ImportError, RuntimeError) as error:
        print(f"{name}, {kind}: {error}")
        return None


def limit_ms(case: Case, copy: float, product: float) -> float:
    """The least that one forward pass could take; see the module's docstring."""
    values = case.batch * case.tokens * case.heads * case.values
    moved = 2 * 2 * values
    inside = CHUNK * (case.values + case.width)
    operations = 2 * case.batch * case.tokens * case.heads * (inside + 2 * case.width * case.values)
    return 1e3 * max(moved / copy, operations / product)


def rates(device: torch.device, repeats: int) -> tuple[float, float]:
    """Bytes a second of a copy (read and write counted), operations a second of a bf16 product."""
    size = 8192 if device.type == "cuda" else 256
    source = torch.empty(2 * size * size * 8, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = 1e-3 * median_ms(lambda: target.copy_(source), device, repeats)
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    product = 1e-3 * median_ms(lambda: a @ a, device, repeats)
    return 2 * source.nbytes / seconds, 2 * size**3 / product


if __name__ == "__main__":
    main()
