"""Whether a GPU's compiler gets the backward kernel right, found out by trying it once.

Triton 3.4 to 3.7.0 is known to miscompile chunked kernels with decays on some GPUs, silently.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from kssm.ops.ssd.kernel_launch import ssd_scan_triton

_TOKENS = 130
_LIMITS = {"tf32x3": 1e-4, "tf32": 3e-2}


@functools.cache
def gradients_hold(
    device: torch.device, heads: int, groups: int, width: int, states: int, precision: str
) -> bool:
    """Whether outputs and all gradients agree with plain PyTorch in fp64, at these sizes.

    Tried once for each; the trial takes some tens of milliseconds beside the compilation.
    """
    inputs = _inputs(heads, groups, width, states)
    with torch.enable_grad():
        expected = _values(_reference(), [t.to(device, torch.float64) for t in inputs])

        def scan(*given: Tensor) -> tuple[Tensor, Tensor]:
            return ssd_scan_triton(*given, precision=precision)

        found = _values(scan, [t.to(device) for t in inputs])
    return all(
        bool((a.double() - b).abs().max() <= _LIMITS[precision] * b.abs().max())
        for a, b in zip(found, expected, strict=True)
    )


def _reference() -> Callable[..., tuple[Tensor, Tensor]]:
    from kssm.ops.ssd import ssd_scan_torch

    return ssd_scan_torch


def _inputs(heads: int, groups: int, width: int, states: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    tokens = (1, _TOKENS)
    return [
        draw(*tokens, heads, width),
        0.1 * draw(*tokens, heads).exp(),
        -draw(heads).exp(),
        draw(*tokens, groups, states),
        draw(*tokens, groups, states),
        draw(1, heads, width, states),
    ]


def _values(scan: Callable[..., tuple[Tensor, Tensor]], inputs: list[Tensor]) -> list[Tensor]:
    """y, the last state and the gradients of a sum of squares of both."""
    leaves = [t.requires_grad_() for t in inputs]
    y, state = scan(*leaves)
    loss = y.square().sum() + state.square().sum()
    return [y.detach(), state.detach(), *torch.autograd.grad(loss, leaves)]
