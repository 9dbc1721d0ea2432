"""Seasonal components: a shaped main cycle with weekly tables, and two slower or faster ones."""

from __future__ import annotations

import torch
from torch import Tensor

from kssm.training.synthetic.profiles import (
    harmonic_profile,
    read_profile,
    read_steps,
    sharp_profile,
    smooth_profile,
)
from kssm.training.synthetic.sampler import Sampler, mixture
from kssm.training.synthetic.signals import slow_noise

CYCLES = 512  # rows of the per-cycle tables; a longer series uses them again
WEEK = 7


def season(sampler: Sampler, periods: Tensor) -> Tensor:
    """The seasonal part of structural series, main cycle of magnitude about 1.

    ``periods [rows, 3]`` in samples. Second and third cycle are added, or in three of ten rows
    multiplied on.
    """
    main_period, second_period, third_period = periods.split(1, dim=1)
    clock = sampler.time() + sampler.uniform(0.0, WEEK) * main_period
    main = main_cycle(sampler, clock / main_period, main_period)
    second = plain_cycle(sampler, clock / second_period, second_period, harmonics=7)
    third = plain_cycle(sampler, clock / third_period, third_period, harmonics=3, smooth=True)
    second_weight = sampler.log_uniform(0.1, 1.5) * sampler.gate(0.45)
    third_weight = sampler.log_uniform(0.1, 3.0) * sampler.gate(0.4)
    added = main + second_weight * second + third_weight * third
    multiplied = (
        main
        * (1.0 + 0.7 * second_weight.clamp(max=1.0) * second)
        * (1.0 + 0.6 * third_weight.clamp(max=1.0) * third)
    )
    return torch.where(sampler.chance(0.3), multiplied, added)


def plain_cycle(
    sampler: Sampler, phase: Tensor, period: Tensor, *, harmonics: int, smooth: bool = False
) -> Tensor:
    """A harmonic cycle that repeats exactly; ``phase [rows, length]`` counts cycles."""
    decay = (1.0, 2.0) if smooth else (0.3, 2.0)
    return read_profile(harmonic_profile(sampler, period, harmonics, decay), phase)


def main_cycle(sampler: Sampler, phase: Tensor, period: Tensor) -> Tensor:
    """A shaped cycle whose size varies from cycle to cycle, by weekday and slowly in time."""
    shape = mixture(
        sampler,
        [
            (0.82, lambda s, x, p: read_profile(smooth_profile(s, p), x)),
            (0.18, lambda s, x, _: read_steps(sharp_profile(s), x)),
        ],
        phase,
        period,
    )
    cycle = phase.floor().long()
    weekly = weekly_table(sampler).gather(1, cycle % WEEK)
    size = cycle_sizes(sampler).gather(1, cycle % CYCLES)
    shape = mixture(sampler, [(0.7, lambda _, x: x), (0.3, _slowly_scaled)], shape)
    offset = sampler.uniform(0.0, 1.0) * sampler.gate(0.4)
    return shape * size * (1.0 + weekly) + offset * weekly


def _slowly_scaled(sampler: Sampler, shape: Tensor) -> Tensor:
    return shape * torch.exp(sampler.uniform(0.0, 0.7) * slow_noise(sampler))


def weekly_table(sampler: Sampler) -> Tensor:
    """Change of each of seven successive cycles, ``[rows, 7]``; the last two are a weekend."""
    table = sampler.normal(WEEK) * sampler.uniform(0.0, 0.6) * sampler.gate(0.5)
    table[:, 5:] += sampler.uniform(-0.9, 0.5) * sampler.gate(0.5)
    return table


def cycle_sizes(sampler: Sampler) -> Tensor:
    """A log-normal factor for each cycle, 1 in half of the rows, ``[rows, CYCLES]``."""
    spread = sampler.uniform(0.0, 0.6) * sampler.gate(0.5)
    return torch.exp(spread * sampler.normal(CYCLES))
