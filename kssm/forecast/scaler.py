"""Causal scaler: location, scale and features of each row, from running statistics.

The recursion itself is ``kssm.ops.scaler_scan``; here its statistics become what the model sees
and the map between samples and normalised units. All in float64 until the features.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from kssm.ops.scaler_scan import FIELDS, MAX_ABSOLUTE, MEMORY, WARM_UP, scan, update

__all__ = [
    "FEATURES",
    "FIELDS",
    "MAX_ABSOLUTE",
    "WARM_UP",
    "denormalise",
    "features",
    "is_visible",
    "location_and_scale",
    "normalise",
    "scan",
    "update",
]

RELATIVE_FLOOR: Final = 1e-8
ABSOLUTE_FLOOR: Final = 1e-30

FEATURES: Final = 9


def is_visible(values: Tensor) -> Tensor:
    """Which values count as samples: finite ones of a magnitude up to 1e30."""
    return values.abs() <= MAX_ABSOLUTE


def location_and_scale(stats: Tensor) -> tuple[Tensor, Tensor]:
    """Location and (positive) scale [...] of statistics [..., 7]."""
    mean = stats[..., 1]
    floor = RELATIVE_FLOOR * mean.abs() + ABSOLUTE_FLOOR
    return mean, torch.maximum(stats[..., 2].sqrt(), floor)


def normalise(x: Tensor, stats: Tensor) -> Tensor:
    """asinh of x in scales from the location: linear near it, logarithmic far away."""
    location, scale = location_and_scale(stats)
    return torch.asinh((x - location) / scale)


def denormalise(z: Tensor, stats: Tensor) -> Tensor:
    """Inverse of ``normalise`` for z [..., K, Q] and stats [..., 7], in float64."""
    location, scale = location_and_scale(stats)
    return torch.sinh(z.double()) * scale[..., None, None] + location[..., None, None]


def features(values: Tensor, dt: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """What the model sees of each sample [..., 9], float32.

    Args:
        values: [...] float64, NaN = missing.
        dt: [...] time since the previous sample.
        before, after: [..., 7] statistics before and after the sample.
    """
    seen = is_visible(values)
    x = torch.where(seen, values, after[..., 5])
    location, scale = location_and_scale(after)
    steps = torch.maximum(after[..., 3].sqrt(), 0.01 * scale)
    started = before[..., 0] > 0
    jump = torch.where(seen & started, x - before[..., 5], 0.0)
    rush = torch.where(seen & started, x - before[..., 4], 0.0)
    deviation = torch.where(seen, x - location, 0.0)
    columns = (
        torch.asinh(deviation / scale),
        seen.double(),
        torch.asinh(jump / steps),
        torch.asinh(rush / steps),
        torch.log(steps / scale),
        torch.asinh((after[..., 5] - location) / scale),
        torch.log(after[..., 0].clamp(1.0, 4 * MEMORY)) / 6.0,
        torch.log1p(after[..., 6]) / 6.0,
        torch.log(dt),
    )
    return torch.stack(columns, dim=-1).float()
