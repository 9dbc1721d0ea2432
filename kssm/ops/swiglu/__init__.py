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

from kssm.ops.eager import outside_graph
from kssm.ops.launch import runs_triton

__all__ = ["swiglu"]


def swiglu(x: Tensor) -> Tensor:
    """[..., 2 H], gates and then values -> [..., H] in the same dtype; differentiable once.

    Only x is kept for the gradient.
    """
    if runs_triton(x, (torch.bfloat16, torch.float16, torch.float32)) and x.numel() > 0:
        return outside_graph(_SwiGLU.apply)(x)
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _kernel().forward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _kernel().backward(*ctx.saved_tensors, dy)


def _kernel() -> Any:
    return importlib.import_module("kssm.ops.swiglu.kernel")
