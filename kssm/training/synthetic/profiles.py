"""Shapes of one cycle, tabulated over a grid of phases and read at any phase.

A table is ``[rows, GRID]``: building it there instead of at every sample makes a shape with many
harmonics as cheap as a look-up. Values lie within about -2 ... 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kssm.training.synthetic.sampler import Sampler, mixture
from kssm.training.synthetic.signals import TWO_PI, peak_normalise

GRID = 256


def read_profile(table: Tensor, phase: Tensor, variant: Tensor | None = None) -> Tensor:
    """Looks the phases up, linearly interpolated.

    ``table`` is ``[rows, GRID]``, or ``[rows, variants, GRID]`` with ``variant [rows, length]``
    (int64) choosing among them; ``phase [rows, length]`` counts cycles, its fraction is used.
    """
    position = torch.frac(phase) * GRID
    left = position.long().clamp(0, GRID - 1)
    right = (left + 1) % GRID
    weight = position - left
    if variant is not None:
        table = table.flatten(1)
        left, right = variant * GRID + left, variant * GRID + right
    return torch.lerp(table.gather(1, left), table.gather(1, right), weight)


def read_steps(table: Tensor, phase: Tensor) -> Tensor:
    """Looks the phases up without interpolation, so that edges stay sharp."""
    index = (torch.frac(phase) * GRID).long().clamp(0, GRID - 1)
    return table.gather(1, index)


def grid(sampler: Sampler) -> Tensor:
    """Phases of the table's columns, ``[1, GRID]``."""
    return torch.arange(GRID, device=sampler.device, dtype=torch.float32)[None] / GRID


def harmonic_profile(
    sampler: Sampler,
    period: Tensor,
    harmonics: int = 12,
    decay: tuple[float, float] = (0.3, 2.0),
) -> Tensor:
    """A Fourier series with falling amplitudes, peak 1.

    ``period [rows, 1]`` in samples removes the harmonics that could not be sampled; 15% of the
    rows keep odd harmonics only.
    """
    order = torch.arange(1, harmonics + 1, device=sampler.device, dtype=torch.float32)[None]
    kept = (order <= sampler.integers(1, harmonics + 1)) & (2.0 * order < period)
    kept &= (order % 2 == 1) | ~sampler.chance(0.15)
    size = sampler.normal(harmonics) * order.pow(-sampler.uniform(*decay)) * kept
    shift = sampler.uniform(0.0, TWO_PI, harmonics)
    angle = TWO_PI * order.T * grid(sampler)
    cosine, sine = size * torch.cos(shift), size * torch.sin(shift)
    return peak_normalise(cosine @ torch.cos(angle) - sine @ torch.sin(angle))


def _bump(sampler: Sampler, centre: Tensor, sharpness: Tensor) -> Tensor:
    return torch.exp(sharpness * (torch.cos(TWO_PI * (grid(sampler) - centre)) - 1.0))


def bump_profile(sampler: Sampler) -> Tensor:
    """One peak a cycle, from broad to a twentieth of the cycle."""
    return 2.0 * _bump(sampler, sampler.uniform(0.0, 1.0), sampler.log_uniform(1.0, 60.0))


def daylight_profile(sampler: Sampler) -> Tensor:
    """A rectified cosine: zero for a part of the cycle, a smooth arch for the rest."""
    height = torch.cos(TWO_PI * (grid(sampler) - 0.5)) - sampler.uniform(-0.6, 0.6)
    return 2.0 * peak_normalise(torch.relu(height))


def commuter_profile(sampler: Sampler) -> Tensor:
    """Two peaks around noon of unequal height on a broad arch."""
    early = _bump(sampler, 0.5 - sampler.uniform(0.08, 0.3), sampler.log_uniform(5.0, 60.0))
    late = _bump(sampler, 0.5 + sampler.uniform(0.08, 0.3), sampler.log_uniform(5.0, 60.0))
    return early + sampler.uniform(0.3, 1.2) * late + 0.5 * daylight_profile(sampler)


def plateau_profile(sampler: Sampler) -> Tensor:
    """High for a part of the cycle, with flanks from gentle to steep (office hours)."""
    cosine = torch.cos(TWO_PI * (grid(sampler) - 0.5))
    threshold = torch.cos(torch.pi * sampler.uniform(0.15, 0.8))
    return 2.0 * torch.sigmoid(sampler.log_uniform(3.0, 80.0) * (cosine - threshold)) - 1.0


def ramp_profile(sampler: Sampler) -> Tensor:
    """A triangle with a random apex; an apex near the end is a saw-tooth."""
    apex = torch.where(sampler.chance(0.5), 0.996, sampler.uniform(0.05, 0.95))
    phase = grid(sampler)
    return 2.0 * torch.where(phase < apex, phase / apex, (1.0 - phase) / (1.0 - apex)) - 1.0


def knot_profile(sampler: Sampler) -> Tensor:
    """Straight lines between 3 ... 24 random knots."""
    knots = sampler.integers(3, 25)
    values = sampler.normal(25)
    position = grid(sampler) * knots
    left = position.long()
    right = (left + 1) % knots
    return 0.7 * torch.lerp(values.gather(1, left), values.gather(1, right), position - left)


def square_profile(sampler: Sampler) -> Tensor:
    """Two levels; the duty is 8 ... 70%."""
    return (grid(sampler) < sampler.uniform(0.08, 0.7)).float() * 2.0 - 1.0


def staircase_profile(sampler: Sampler) -> Tensor:
    """3 ... 24 random levels of equal width."""
    index = (grid(sampler) * sampler.integers(3, 25)).long()
    return (sampler.normal(25) * sampler.uniform(0.3, 1.0)).gather(1, index)


def smooth_profile(sampler: Sampler, period: Tensor) -> Tensor:
    """Any of the shapes that are read with interpolation, ``[rows, GRID]``."""
    options = [
        (0.52, harmonic_profile),
        (0.12, lambda s, _: bump_profile(s)),
        (0.10, lambda s, _: daylight_profile(s)),
        (0.10, lambda s, _: commuter_profile(s)),
        (0.06, lambda s, _: plateau_profile(s)),
        (0.07, lambda s, _: ramp_profile(s)),
        (0.03, lambda s, _: knot_profile(s)),
    ]
    return mixture(sampler, options, period)


def sharp_profile(sampler: Sampler) -> Tensor:
    """Any of the shapes with sharp edges, ``[rows, GRID]``."""
    return mixture(sampler, [(0.5, square_profile), (0.5, staircase_profile)])
