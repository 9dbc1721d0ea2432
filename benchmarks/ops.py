"""Speed of the scan, as a share of what copying the same bytes would take.

    python -m benchmarks.ops [--save] [--tune]

Counted bytes: every input read once and every output written once a pass. The states that the
forward pass keeps for the backward pass are not counted, so keeping them costs its share.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import Row, finish, table
from kssm.ops.kssm_scan import ScanParameters, kssm_scan

GPU_SHAPES = ((64, 4096, 1024), (8, 4096, 1024), (1, 65536, 1024), (128, 2048, 320))
CPU_SHAPES = ((1, 512, 64), (8, 512, 64))
GROUP_WIDTH = 64


def main() -> None:
    """Measure, print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="keep the line in benchmarks/results/")
    parser.add_argument("--tune", action="store_true", help="try other cuts of the work instead")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shapes = GPU_SHAPES if device.type == "cuda" else CPU_SHAPES
    copy = copy_rate(device, options.repeats)
    measure = tune if options.tune else measure_shape
    rows = [row for shape in shapes for row in measure(shape, device, copy, options.repeats)]
    print(table(rows))
    finish("ops-tune" if options.tune else "ops", device, rows, save=options.save)


def measure_shape(
    shape: tuple[int, int, int], device: torch.device, copy: float, repeats: int
) -> list[Row]:
    """Forward alone and forward with backward, through the public function."""
    case = Case(shape, device)
    return [
        row("forward", case, copy, case.forward_bytes, median_ms(case.forward, device, repeats)),
        row("both", case, copy, case.both_bytes, median_ms(case.both, device, repeats)),
    ]


def tune(shape: tuple[int, int, int], device: torch.device, copy: float, repeats: int) -> list[Row]:
    """The same for other block widths, unrolls and numbers of time chunks (Triton only)."""
    from kssm.ops.kssm_scan.kernel import scan_triton
    from kssm.ops.kssm_scan.kernel_launch import BACKWARD, FORWARD

    case, rows = Case(shape, device), list[Row]()
    for block, unroll, wanted in itertools.product((32, 64), (4, 8), (0, 16)):
        change: dict[str, Any] = {"block_d": block, "unroll": unroll}
        change |= {"enough": wanted and 8, "wanted": wanted}
        tunings = (replace(FORWARD, **change), replace(BACKWARD, **change))

        def scan(*args: Any, tunings: Any = tunings) -> Any:
            return scan_triton(*args, tuning=tunings)

        case.scan = scan
        for name, run, size in (
            ("forward", case.forward, case.forward_bytes),
            ("both", case.both, case.both_bytes),
        ):
            found = row(name, case, copy, size, median_ms(run, device, max(repeats // 4, 3)))
            rows.append({"block": block, "unroll": unroll, "wanted": wanted, **found})
    return rows


class Case:
    """One shape's random inputs (bf16, fp32 parameters) and the two things that are timed."""

    def __init__(self, shape: tuple[int, int, int], device: torch.device) -> None:
        batch, tokens, channels = self.shape = shape
        groups = max(1, channels // GROUP_WIDTH)

        def draw(*size: int) -> Tensor:
            return torch.randn(*size, device=device, dtype=torch.bfloat16).requires_grad_()

        self.inputs = [draw(batch, tokens, channels) for _ in range(4)]
        self.inputs += [draw(batch, tokens, groups) for _ in range(2)]
        values = [torch.randn(channels, device=device).requires_grad_() for _ in range(6)]
        self.parameters = ScanParameters(*values)
        self.dy = torch.randn(*shape, device=device, dtype=torch.bfloat16)
        self.scan: Callable[..., tuple[Tensor, Tensor]] = kssm_scan
        read = sum(t.nbytes for t in self.inputs)
        self.forward_bytes = read + self.dy.nbytes
        self.both_bytes = self.forward_bytes + read + self.dy.nbytes + read

    def forward(self) -> None:
        """The scan as in inference: nothing is kept."""
        with torch.no_grad():
            self.scan(*self.inputs, self.parameters)

    def both(self) -> None:
        """The scan and all its gradients."""
        y, _ = self.scan(*self.inputs, self.parameters)
        torch.autograd.grad(y, [*self.inputs, *self.parameters], self.dy)


def row(name: str, case: Case, copy: float, size: int, ms: float) -> Row:
    """One line of the table; ``copy`` in bytes a second."""
    batch, tokens, channels = case.shape
    return {
        "pass": name,
        "batch": batch,
        "tokens": tokens,
        "channels": channels,
        "ms": ms,
        "gb_per_s": size / ms / 1e6,
        "share_of_copy": size / ms * 1e3 / copy,
    }


def copy_rate(device: torch.device, repeats: int) -> float:
    """Bytes a second of a large copy, reads and writes counted."""
    source = torch.empty(2**30 if device.type == "cuda" else 2**24, dtype=torch.uint8).to(device)
    target = torch.empty_like(source)
    ms = median_ms(lambda: target.copy_(source), device, repeats)
    return 2 * source.nbytes / ms * 1e3


def median_ms(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median duration of ``run`` after three runs to warm up, in milliseconds."""
    for _ in range(3):
        run()
    timer = _cuda_ms if device.type == "cuda" else _wall_ms
    return statistics.median(timer(run) for _ in range(repeats))


def _cuda_ms(run: Callable[[], object], queued: int = 5) -> float:
    """Mean of a few runs queued at once, so that Python's launches hide behind the GPU's work."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(queued):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / queued


def _wall_ms(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


if __name__ == "__main__":
    main()
