"""Calendar series: clean daily profiles with working days, weekends, holidays and limits.

They teach what a random cycle does not: at five-minute sampling a day has 288 samples and a week
2,016, the profile repeats almost exactly, and its top or bottom is often cut by a physical limit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kssm.training.synthetic.bounded import limited
from kssm.training.synthetic.profiles import grid, read_profile, smooth_profile
from kssm.training.synthetic.sampler import Sampler, constant, mixture
from kssm.training.synthetic.signals import TWO_PI, observation_noise, slow_noise
from kssm.training.synthetic.trends import trend

# Samples a day and weight: hourly up to a minute.
DAYS: tuple[tuple[float, float], ...] = (
    (24, 2.5),
    (48, 1.5),
    (72, 0.5),
    (96, 3.0),
    (144, 3.0),
    (288, 5.0),
    (360, 0.7),
    (480, 0.5),
    (720, 0.8),
    (1440, 0.8),
)
# Few samples: a week or a year of which each "day" is a week or a quarter as well.
SHORT_DAYS: tuple[tuple[float, float], ...] = ((7, 3.0), (12, 3.0), (24, 3.0), (48, 1.5), (52, 1.0))
WEEKS: tuple[tuple[float, ...], ...] = (
    (0, 0, 0, 0, 0, 1, 2),  # working days, Saturday, Sunday
    (0, 0, 0, 0, 0, 1, 1),
    (0, 0, 0, 0, 1, 1, 2),
    (0, 0, 0, 0, 0, 0, 2),
    (0, 0, 0, 0, 0, 0, 0),
    (0, 1, 0, 1, 0, 1, 2),
)
WEEK_WEIGHTS = (4.0, 3.0, 1.0, 1.5, 4.0, 0.5)
KINDS = 3  # working day, Saturday, Sunday or holiday
HOLIDAYS = 400


def calendar(sampler: Sampler) -> Tensor:
    """Daily profiles by kind of day, slow modulation, noise, limits: ``[rows, length]``."""
    day = draw_day(sampler)
    clock = sampler.time() + sampler.uniform(0.0, 7.0) * day
    phase = clock / day
    shape = read_profile(day_profiles(sampler, day), phase, day_kinds(sampler, phase))
    shape = shape * day_modulation(sampler) + _second_season(sampler, clock, day)
    drift = sampler.log_uniform(0.05, 1.0) * sampler.gate(0.4) * trend(sampler)
    noise = sampler.log_uniform(0.003, 0.4) * observation_noise(sampler)
    before = sampler.gate(0.6)
    signal = limited(sampler, shape + drift + before * noise)
    return signal + (1.0 - before) * 0.5 * noise


def draw_day(sampler: Sampler) -> Tensor:
    """Samples a day, ``[rows, 1]``."""
    table = SHORT_DAYS if sampler.short else DAYS
    lengths = constant([length for length, _ in table], sampler.device)
    return lengths[sampler.choice([weight for _, weight in table])][:, None]


def day_profiles(sampler: Sampler, day: Tensor) -> Tensor:
    """Three related profiles, ``[rows, KINDS, GRID]``; they meet at midnight."""
    drawn = smooth_profile(sampler.resized(KINDS * sampler.rows), day.repeat(KINDS, 1))
    usual, *others = drawn.split(sampler.rows)
    return torch.stack([usual, *(_variant(sampler, usual, other) for other in others)], dim=1)


def _variant(sampler: Sampler, usual: Tensor, other: Tensor) -> Tensor:
    """The usual profile at another size, or mixed with another one, away from midnight."""
    mixed = torch.lerp(usual, other, sampler.uniform(0.0, 1.0) * sampler.gate(0.6))
    target = mixed * sampler.uniform(0.1, 1.3)
    return torch.lerp(usual, target, torch.sin(torch.pi * grid(sampler)).square())


def day_kinds(sampler: Sampler, phase: Tensor) -> Tensor:
    """Which profile each sample belongs to, int64 ``[rows, length]`` below ``KINDS``."""
    day_number = phase.floor().long()
    week = constant(WEEKS, sampler.device)[sampler.choice(WEEK_WEIGHTS)].long()
    kind = week.gather(1, day_number % 7)
    holiday = sampler.chance(0.03, HOLIDAYS) & sampler.chance(0.3)
    return torch.where(holiday.gather(1, day_number % HOLIDAYS), KINDS - 1, kind)


def day_modulation(sampler: Sampler) -> Tensor:
    """A slowly varying positive factor; constant 1 in six of ten rows."""
    options = [
        (0.6, lambda s: torch.ones(s.rows, s.length, device=s.device)),
        (0.4, lambda s: torch.exp(s.uniform(0.0, 0.5) * slow_noise(s))),
    ]
    return mixture(sampler, options)


def _second_season(sampler: Sampler, clock: Tensor, day: Tensor) -> Tensor:
    """A sinusoid of a week, a year or a fraction of a day, in half of the rows."""
    ratios = constant([7.0, 365.25, 0.5, 1 / 3, 0.25], sampler.device)
    period = day * ratios[sampler.choice([3.0, 3.0, 1.0, 0.5, 0.5])][:, None]
    size = sampler.log_uniform(0.05, 1.5) * sampler.gate(0.5)
    angle = TWO_PI * (clock / period + sampler.uniform(0.0, 1.0))
    return size * torch.cos(angle)
