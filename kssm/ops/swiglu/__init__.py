"""The gated product of a feed-forward layer, SiLU(gate) value, one kernel each way.

Source: Shazeer, "GLU Variants Improve Transformer", 2020.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kssm.ops.launch import fuses

__all__ = ["swiglu"]


def swiglu(x: Tensor) -> Tensor:
    """[..., 2 H], gates and then values -> [..., H] in the same dtype; differentiable once.

    Only x is kept for the gradient.
    """
    if fuses(x):
        return _SwiGLU.apply(x)
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _kernel().forward(x)

    @staticmethod
    @once_differentiable  # pyright does not see through it
    def backward(ctx: Any, dy: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _kernel().backward(*ctx.saved_tensors, dy)


def _kernel() -> Any:
    return importlib.import_module("kssm.ops.swiglu.kernel")
