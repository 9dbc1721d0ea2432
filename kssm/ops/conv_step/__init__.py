"""One token of a causal depth-wise convolution for each of many rows, windows changed in place.

y = bias + sum_j weight_j window_j + weight_last x      window <- (window_1 ... window_last, x)
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor
from torch.nn import functional as F

from kssm.ops.eager import outside_graph
from kssm.ops.launch import runs_triton

__all__ = ["conv_step_"]


def conv_step_(
    x: Tensor, weight: Tensor, bias: Tensor, windows: Tensor, slots: Tensor, *, silu: bool = False
) -> Tensor:
    """Filter one token a row.

    Args:
        x: [N, C].
        weight: [width, C], the present token's taps last; bias: [C].
        windows: arena [rows, width - 1, C] of the last inputs, changed in place.
        slots: [N] rows of the arena; only scratch rows may occur more than once.
        silu: apply SiLU to the result.

    Returns:
        y [N, C]. A row with an input that is not finite keeps its old window.
    """
    if runs_triton(windows):
        kernel = importlib.import_module("kssm.ops.conv_step.kernel")
        return outside_graph(kernel.conv_step_triton_)(x, weight, bias, windows, slots, silu)
    window = windows[slots]
    taps = torch.cat([window, x.unsqueeze(1)], dim=1)
    healthy = torch.isfinite(x).all(-1)[:, None, None]
    windows[slots] = torch.where(healthy, taps[:, 1:], window)
    y = bias + (taps * weight).sum(1)
    return F.silu(y) if silu else y
