"""Time and memory against length, one row: the element-wise scan beside attention.

    python -m benchmarks.ops_length [--save] [--repeats N] [--seconds N]

Attention is PyTorch's (causal, 16 heads of 64, bf16: FlashAttention on a GPU) on as many channels.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence

import torch

from benchmarks.ops_plot import draw_length
from benchmarks.ops_scan import PASSES, contender
from benchmarks.peers_scan import Case
from benchmarks.processes import Worker
from benchmarks.report import Row, finish, table

CHANNELS = 1024
NAMES = ("ours", "selective_scan", "attention")
GPU_LENGTHS = tuple(2**k for k in range(10, 19))
CPU_LENGTHS = (64, 128)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table and the JSON line, and draw what is saved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="keep results in benchmarks/results/")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=600, help="begin nothing after this")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    lengths, channels = (GPU_LENGTHS, CHANNELS) if on_gpu else (CPU_LENGTHS, 64)
    names = NAMES if on_gpu else ("ours", "attention")
    rows: list[Row] = []
    end = time.monotonic() + options.seconds
    with Worker() as worker:
        apart = worker if on_gpu else None
        for tokens, name, kind in itertools.product(lengths, names, PASSES):
            if time.monotonic() < end:
                case = Case(1, tokens, channels, device)
                ms, peak, problem = contender(name, kind, case, options.repeats, apart)
                row: Row = {"tokens": tokens, "channels": channels, "pass": kind, "contender": name}
                rows.append({**row, "ms": ms, "peak_bytes_per_element": peak, "problem": problem})
    print(table(rows))
    finish("ops_length", device, rows, save=options.save)
    if options.save:
        draw_length()


if __name__ == "__main__":
    main()
