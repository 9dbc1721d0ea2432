"""A causal depth-wise convolution of a few taps with SiLU, over whole sequences.

    y_t = SiLU(bias + sum over taps j of weight_j x_{t - (taps - 1) + j})

On a GPU one kernel each for values and gradients; the README beside this file has their design.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from kssm.ops.conv_silu.reference import filtered, window_after
from kssm.ops.joint import Place
from kssm.ops.launch import fuses

__all__ = ["conv_silu", "filtered", "window_after"]

_TAPS = 4
"""Taps that the kernels keep in registers."""


def conv_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    window: Tensor | None,
    sizes: Sequence[int],
    place: Place | None = None,
) -> tuple[Tensor, ...]:
    """Filter the tokens of every row, and cut the channels into pieces.

    Args:
        x: [B, T, C]; a slice of a wider projection is read where it lies.
        weight: [taps, C], the present token's last; bias: [C].
        window: [B, taps - 1, C] inputs before the first token, None = zeros.
        sizes: channels of the pieces, C together.
        place: where the gradient of x belongs, None = anywhere.

    Returns:
        The pieces of y [B, T, ...] in x's dtype, the first of them twice: for two uses, whose
        gradients the backward kernel adds. Arithmetic is in fp32 (fp64 for fp64 inputs).

    Differentiable once in x, weight, bias and window.
    """
    if fuses(x) and len(weight) <= _TAPS:
        kernels = importlib.import_module("kssm.ops.conv_silu.kernel_launch")
        return kernels.conv_silu_triton(x, weight, bias, window, sizes, place)
    y = F.silu(filtered(x, weight, bias, window)).to(x.dtype)
    first, *rest = y.split(list(sizes), dim=-1)
    return first, first, *rest
