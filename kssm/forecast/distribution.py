"""A predictive distribution given by nine quantiles: other quantiles and tail probabilities.

Between the levels the quantile function is linear. Beyond the outer ones it continues as the
normal distribution through the median and the outer quantile, so it is continuous everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kssm.errors import InvalidInputError

LEVELS: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
MEDIAN = LEVELS.index(0.5)
SCORED_HORIZONS = 4
"""Forecasts kept at hand to score a sample that arrives up to this many intervals later."""

_OUTER_Z = 1.2815515655446004  # standard normal quantile at 0.9
_MIN_SPREAD = 1e-6  # of the outer quantiles around the median, in normalised units


def check_levels(levels: Sequence[float]) -> tuple[float, ...]:
    """The levels as a tuple; raises ``invalid_quantiles`` unless all lie inside (0, 1)."""
    checked = tuple(float(level) for level in levels)
    if not checked or not all(0.0 < level < 1.0 for level in checked):
        raise InvalidInputError("quantiles must be numbers inside (0, 1)", "invalid_quantiles")
    return checked


def interpolate(quantiles: Tensor, levels: Sequence[float]) -> Tensor:
    """Quantiles [..., 9] at ``LEVELS`` -> quantiles [..., len(levels)] at other levels."""
    return torch.stack([_quantile(quantiles, level) for level in levels], dim=-1)


def _quantile(quantiles: Tensor, level: float) -> Tensor:
    median = quantiles[..., MEDIAN]
    below, above, weight = between(level)
    if above is None:
        return median + (quantiles[..., below] - median) * weight
    if weight == 0.0:
        return quantiles[..., below]
    return quantiles[..., below] * (1.0 - weight) + quantiles[..., above] * weight


def between(level: float) -> tuple[int, int | None, float]:
    """Which of the nine quantiles a level lies between, and the weight of the second.

    Beyond the outer one there is no second, and the weight is how many times as far from the
    median as that one the level lies.
    """
    if level < LEVELS[0] or level > LEVELS[-1]:
        z = abs(math.sqrt(2.0) * float(torch.erfinv(torch.tensor(2 * level - 1).double())))
        return 0 if level < 0.5 else len(LEVELS) - 1, None, z / _OUTER_Z
    position = (level - LEVELS[0]) * 10.0
    below = min(int(position + 1e-9), len(LEVELS) - 1)
    weight = position - below
    return (below, below, 0.0) if weight < 1e-9 else (below, below + 1, weight)


def tail_probability(quantiles: Tensor, x: Tensor) -> Tensor:
    """Two-sided tail probability [...] of x [...]: small where x was unexpected, at most 1.

    Far above as precise as far below: nothing is subtracted from 1 beyond the outer quantiles.
    """
    beyond, z = _outside(quantiles, x)
    below = _inside(quantiles, x)
    between = 2.0 * torch.minimum(below, 1.0 - below)
    return torch.where(beyond, normal_tail(z.abs()), between)


def normal_tail(z: Tensor) -> Tensor:
    """Twice the probability of a standard normal above z (two-sided for z >= 0), down to 1e-300.

    ``torch.special.ndtr`` is 0 beyond 8.3 standard deviations.
    """
    return torch.special.erfc(z * math.sqrt(0.5))


def _outside(quantiles: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Which x lie beyond the outer quantiles, and their distance in standard deviations."""
    median = quantiles[..., MEDIAN]
    lower = (median - quantiles[..., 0]).clamp_min(_MIN_SPREAD) / _OUTER_Z
    upper = (quantiles[..., -1] - median).clamp_min(_MIN_SPREAD) / _OUTER_Z
    distance = x - median
    beyond = (x < quantiles[..., 0]) | (x > quantiles[..., -1])
    return beyond, distance / torch.where(distance < 0, lower, upper)


def _inside(quantiles: Tensor, x: Tensor) -> Tensor:
    gaps = quantiles.diff(dim=-1)
    inside = (x.unsqueeze(-1) - quantiles[..., :-1]) / gaps.clamp_min(1e-12)
    steps = torch.where(gaps > 0, inside.clamp(0.0, 1.0), (inside >= 0).to(x.dtype))
    return LEVELS[0] + 0.1 * steps.sum(-1)
