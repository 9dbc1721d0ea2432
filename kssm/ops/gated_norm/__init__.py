"""Root-mean-square norms with what stands around them in a block, one kernel each way.

    gated_norm:     (norm(x) weight + skip value) SiLU(gate)
    residual_norm:  norm(x + y) weight, and x + y for the residual stream

``norm`` divides each group of channels by its root mean square. The README beside this file has
the kernels' design.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from kssm.ops.gated_norm.reference import gated, rms_norm
from kssm.ops.joint import Place
from kssm.ops.launch import fuses

__all__ = ["gated_norm", "residual_norm", "rms_norm"]


def gated_norm(
    x: Tensor,
    weight: Tensor,
    group_size: int,
    eps: float,
    value: Tensor,
    skip: Tensor,
    gate: Tensor,
    dtype: torch.dtype,
    place: Place | None = None,
) -> Tensor:
    """(norm(x) weight + skip value) SiLU(gate) in ``dtype``.

    Args:
        x, value, gate: [..., C]; slices of wider tensors are read where they lie.
        weight, skip: [C].
        group_size: channels that share a root mean square; divides C.
        eps: added to the mean square.
        dtype: of the result.
        place: where the gradient of the gate belongs, None = anywhere.

    Arithmetic is in fp32 (fp64 for fp64 inputs). Differentiable once in all tensors.
    """
    if fuses(x):
        run = _kernels().gated_norm_triton
        return run(x, weight, group_size, eps, value, skip, gate, dtype, place)
    return gated(rms_norm(x, weight, group_size, eps), value, skip, gate).to(dtype)


def residual_norm(
    x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype, plus: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """norm(x) weight over all channels in ``dtype``, and x itself, where x is x + ``plus``.

    Whoever adds the layer's result to that x, and not to the argument, spares a pass over memory:
    the backward kernel adds the gradients of both. The sum has x's dtype.
    """
    if fuses(x):
        return _kernels().residual_norm_triton(x, weight, eps, dtype, plus)
    x = x if plus is None else x + plus
    return rms_norm(x, weight, x.shape[-1], eps).to(dtype), x


def _kernels() -> Any:
    return importlib.import_module("kssm.ops.gated_norm.kernel_launch")
