"""Comparing a kernel's values and gradients with a float64 reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tests.ops.problems import DEVICE

ON_GPU = DEVICE == "cuda"

Scan = Callable[..., tuple[Tensor, Tensor]]


def draw(*shape: int, seed: int) -> Tensor:
    """Normal numbers in fp32 on the CPU."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def worst(actual: Tensor, expected: Tensor) -> float:
    """Largest error, as a share of the largest expected number."""
    error = (actual.detach().cpu().double() - expected.detach().double()).abs().max()
    return float(error / expected.detach().abs().max().clamp_min(1e-30))


def values_and_gradients(scan: Scan, inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """(y, last state) and all gradients of a weighted sum of both."""
    device = "cpu" if dtype == torch.float64 else DEVICE
    leaves = [t.to(device, dtype).requires_grad_() for t in inputs]
    y, state = scan(*leaves)
    weights = [draw(*t.shape, seed=99).to(t) for t in (y, state)]
    loss = (y * weights[0]).sum() + (state * weights[1]).sum()
    return [y, state, *torch.autograd.grad(loss, leaves)]


def check_scan(kernel: Scan, reference: Scan, inputs: Sequence[Tensor], limit: float) -> None:
    """``kernel`` in fp32 against ``reference`` in fp64."""
    expected = values_and_gradients(reference, inputs, torch.float64)
    found = values_and_gradients(kernel, inputs, torch.float32)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert worst(a, b) <= limit, (i, worst(a, b))
