"""Time and memory of the element-wise scan beside other recurrences and a plain copy.

    python -m benchmarks.ops_scan [--save] [--only NAME ...] [--repeats N]

``share_of_copy`` is the time that a copy of the counted bytes would take, over the time taken.
Counted for forward: each input read once, y written once; for forward and backward: that, then
inputs and the gradient of y read once and the gradients written once. What a pass keeps or reads
twice is its own cost. Times are the device's alone (see gpu_time.py). Peers that are not installed
are left out; they run in a process of their own, as a peer's extension may end it.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks.gpu_time import queued_ms
from benchmarks.ops_plot import draw_scan
from benchmarks.peers_scan import CONTENDERS, Case
from benchmarks.processes import LostError, Worker
from benchmarks.report import Row, finish, table

GPU_SHAPES = ((64, 4096, 1024), (8, 4096, 1024), (1, 65_536, 1024), (256, 512, 512))
CPU_SHAPES = ((1, 512, 64), (8, 512, 64))
PASSES = ("forward", "both")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table and the JSON line, and draw what is saved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="keep results in benchmarks/results/")
    parser.add_argument("--only", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=600, help="begin nothing after this")
    parser.add_argument("--limit", type=float, default=150, help="seconds for a peer's line")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shapes = GPU_SHAPES if device.type == "cuda" else CPU_SHAPES
    names = options.only if device.type == "cuda" else ["ours"]
    copy = copy_rate(device, options.repeats)
    rows: list[Row] = []
    end = time.monotonic() + options.seconds
    lost: set[tuple[str, str]] = set()
    with Worker(options.limit) as worker:
        for name, kind, shape in itertools.product(names, PASSES, shapes):
            if time.monotonic() < end and (name, kind) not in lost:
                case = Case(*shape, device)
                rows.append(measure(name, kind, case, copy, options.repeats, worker))
                print(table(rows[-1:]), flush=True)
                if "no answer" in str(rows[-1]["problem"]):
                    lost.add((name, kind))  # another shape would take as long
    rows.sort(key=lambda row: [str(row[key]) for key in ("tokens", "batch", "pass")])
    print(table(rows))
    finish("ops_scan", device, rows, save=options.save)
    if options.save:
        draw_scan()


def measure(
    name: str, kind: str, case: Case, copy: float, repeats: int, worker: Worker | None = None
) -> Row:
    """One line: a contender, a shape and a pass."""
    ms, peak, problem = contender(name, kind, case, repeats, worker)
    share = counted_bytes(case, kind) / (ms * 1e-3) / copy if ms and name == "ours" else None
    return {
        "batch": case.batch,
        "tokens": case.tokens,
        "channels": case.channels,
        "pass": kind,
        "contender": name,
        "ms": ms,
        "peak_bytes_per_element": peak,
        "share_of_copy": share,
        "problem": problem,
    }


Outcome = tuple[float | None, float | None, str]


def contender(
    name: str, kind: str, case: Case, repeats: int, worker: Worker | None = None
) -> Outcome:
    """(median ms, most bytes held above the inputs by element of y, what went wrong)."""
    if worker is None or name == "ours":
        return timed(name, kind, case, repeats)
    try:
        return worker.call(timed, name, kind, case, repeats)
    except LostError as error:
        return None, None, str(error)


def timed(name: str, kind: str, case: Case, repeats: int) -> Outcome:
    """The same, in this process."""
    try:
        found = CONTENDERS[name](case)
        run = found.forward() if kind == "forward" else found.both()
        ms = queued_ms(run, case.device, repeats)
        return ms, peak_bytes(run, case), ""
    except ImportError as error:
        return None, None, f"not installed: {error.name}"
    except Exception as error:  # noqa: BLE001 (a peer may fail in ways of its own)
        return None, None, f"{type(error).__name__}: {str(error)[:80]}"
    finally:
        if case.device.type == "cuda":
            torch.cuda.empty_cache()


def peak_bytes(run: Callable[[], object], case: Case) -> float | None:
    """Bytes by element that a run holds at its fullest, beyond what was there before."""
    if case.device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / case.elements


def counted_bytes(case: Case, kind: str) -> int:
    """Bytes that a pass has to move in bf16."""
    rows = case.batch * case.tokens
    inputs = 2 * rows * (4 * case.channels + 2 * case.groups)
    output = 2 * case.elements
    return inputs + output if kind == "forward" else 3 * inputs + 2 * output


def copy_rate(device: torch.device, repeats: int) -> float:
    """Bytes a second of a large copy, reads and writes counted."""
    source = torch.empty(2**31 if device.type == "cuda" else 2**24, dtype=torch.uint8).to(device)
    target = torch.empty_like(source)
    ms = queued_ms(lambda: target.copy_(source), device, repeats)
    return 2 * source.nbytes / ms * 1e3


if __name__ == "__main__":
    main()
