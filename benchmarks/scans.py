"""The recurrences of Mamba, Mamba-2 and RWKV-6: Triton kernels against plain PyTorch.

    python -m benchmarks.scans [--save]

Needs a GPU. Inputs are fp32, sizes those of the models' preset "base".
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.models import median_ms
from benchmarks.report import Row, finish, table
from kssm.ops.selective_scan import selective_scan, selective_scan_torch
from kssm.ops.ssd import ssd_scan, ssd_scan_torch
from kssm.ops.wkv6 import wkv6
from kssm.ops.wkv6.chunked import wkv6_chunked

Scan = Callable[..., tuple[Tensor, Tensor]]
SHAPES = ((1, 16384), (16, 2048))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="keep the line in benchmarks/results/")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    device = torch.device("cuda")
    rows = [row for shape in SHAPES for row in measure(*shape, device, options.repeats)]
    print(table(rows))
    finish("scans", device, rows, save=options.save)


def measure(batch: int, tokens: int, device: torch.device, repeats: int) -> list[Row]:
    """Forward alone and forward with backward of the three, by both."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(batch, tokens, *shape, device=device)

    step = draw(512).mul(0.5).sub(4).exp()
    decay = -torch.rand(512, 16, device=device).mul(2).exp()
    zeros = torch.zeros(batch, 32768, device=device)
    mamba = [draw(512), step, decay, draw(16), draw(16), zeros[:, :8192].view(batch, 512, 16)]
    steps, rates = step[..., :8].contiguous(), decay[:8, 0].contiguous()
    state = zeros.view(batch, 8, 64, 64)
    mamba2 = [draw(8, 64), steps, rates, draw(1, 64), draw(1, 64), state]
    bonus = torch.randn(4, 64, device=device)
    log_decay = -draw(4, 64).sub(2).exp()
    rwkv = [draw(4, 64), draw(4, 64), draw(4, 64), log_decay, bonus, state[:, :4].contiguous()]
    cases: list[tuple[str, Scan, Scan, list[Tensor]]] = [
        ("selective_scan", selective_scan, selective_scan_torch, mamba),
        ("ssd", ssd_scan, ssd_scan_torch, mamba2),
        ("wkv6", wkv6, wkv6_chunked, rwkv),
    ]
    found: list[Row] = []
    for name, ours, plain, inputs in cases:
        for backward in (False, True):
            times = [
                median_ms(action(scan, inputs, backward), device, repeats, queued=2)
                for scan in (ours, plain)
            ]
            row: Row = {"scan": name, "rows": batch, "tokens": tokens, "backward": backward}
            found.append({**row, "triton_ms": times[0], "torch_ms": times[1]})
            found[-1]["speedup"] = times[1] / times[0]
    return found


def action(scan: Scan, inputs: Sequence[Tensor], backward: bool) -> Callable[[], object]:
    """One call of ``scan``, with all its gradients or without."""
    if not backward:
        return torch.no_grad()(lambda: scan(*inputs))
    leaves = [t.detach().requires_grad_() for t in inputs]

    def run() -> object:
        y, state = scan(*leaves)
        return torch.autograd.grad(y.sum() + state.sum(), leaves)

    return run


if __name__ == "__main__":
    main()
