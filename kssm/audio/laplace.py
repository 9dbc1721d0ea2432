"""Laplace distributions: quantiles and tail probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def quantiles(mean: Tensor, scale: Tensor, levels: Sequence[float]) -> Tensor:
    """Quantiles [..., len(levels)] of distributions [...]; levels inside (0, 1)."""
    widths = [math.copysign(-math.log(1.0 - abs(2.0 * p - 1.0)), p - 0.5) for p in levels]
    return torch.stack([mean + scale * width for width in widths], dim=-1)


def tail(mean: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    """Two-sided tail probability [...] of x [...], 1 at the mean; float64."""
    return torch.exp(-((x.double() - mean).abs() / scale.double().clamp_min(1e-30)))
