"""Root-mean-square norm, skip and gate in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def rms_norm(x: Tensor, weight: Tensor, group_size: int, eps: float) -> Tensor:
    """The norm over groups of the last dimension, in at least fp32."""
    wide = x if x.dtype == torch.float64 else x.float()
    groups = wide.unflatten(-1, (-1, group_size))
    scale = torch.rsqrt(groups.square().mean(-1, keepdim=True) + eps)
    return (groups * scale).flatten(-2) * weight


def gated(normed: Tensor, value: Tensor, skip: Tensor, gate: Tensor) -> Tensor:
    """(normed + skip value) SiLU(gate)."""
    return (normed + skip * value) * F.silu(gate)
