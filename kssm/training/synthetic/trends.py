"""Slow components: up to three of nine kinds of trend and change are added up."""

from __future__ import annotations

import torch
from torch import Tensor

from kssm.training.synthetic.sampler import Sampler, mixture
from kssm.training.synthetic.signals import (
    coloured_noise,
    heavy_noise,
    levels,
    rare_events,
    slow_noise,
    standardise,
)

SLOTS = 3
SLOT_PROBABILITY = 0.75


def trend(sampler: Sampler) -> Tensor:
    """A sum of zero to three trend components with normal weights, ``[rows, length]``."""
    options = [
        (0.14, linear_trend),
        (0.14, piecewise_linear_trend),
        (0.14, random_walk),
        (0.11, level_shifts),
        (0.12, sigmoid_step),
        (0.11, exponential_trend),
        (0.10, lambda s: 2.0 * slow_noise(s)),
        (0.07, temporary_levels),
        (0.07, damped_trend),
    ]
    slots = sampler.resized(SLOTS * sampler.rows)
    weight = slots.normal() * slots.gate(SLOT_PROBABILITY)
    parts = weight * mixture(slots, options)
    return parts.view(SLOTS, sampler.rows, sampler.length).sum(0)


def relative_time(sampler: Sampler) -> Tensor:
    """Time from 0 to 1 over the series, ``[1, length]``."""
    return sampler.time() / max(sampler.length - 1, 1)


def linear_trend(sampler: Sampler) -> Tensor:
    """A straight line that rises by 3."""
    return (3.0 * relative_time(sampler)).expand(sampler.rows, -1)


def piecewise_linear_trend(sampler: Sampler) -> Tensor:
    """A continuous line whose slope changes at a few random times."""
    slope = sampler.normal() + (rare_events(sampler) * sampler.normal(sampler.length)).cumsum(1)
    return 2.0 * standardise(slope.cumsum(1))


def random_walk(sampler: Sampler) -> Tensor:
    """A Gaussian random walk with drift."""
    steps = sampler.normal(sampler.length) + sampler.uniform(-0.1, 0.1)
    return 2.0 * standardise(steps.cumsum(1))


def level_shifts(sampler: Sampler) -> Tensor:
    """Lasting jumps of heavy-tailed size at a few random times."""
    return 1.5 * (rare_events(sampler) * heavy_noise(sampler)).cumsum(1)


def sigmoid_step(sampler: Sampler) -> Tensor:
    """A smooth transition from one level to another."""
    distance = relative_time(sampler) - sampler.uniform(0.0, 1.0)
    return 3.0 * torch.sigmoid(distance * sampler.log_uniform(3.0, 60.0))


def exponential_trend(sampler: Sampler) -> Tensor:
    """Exponential growth or decay towards a floor, rising by 3."""
    rate = sampler.uniform(-4.0, 4.0)
    rate = torch.where(rate.abs() < 0.1, 0.1, rate)
    return 3.0 * torch.expm1(rate * relative_time(sampler)) / torch.expm1(rate).abs()


def temporary_levels(sampler: Sampler) -> Tensor:
    """A second level that comes and goes."""
    return 2.0 * (rare_events(sampler).cumsum(1) % 2)


def damped_trend(sampler: Sampler) -> Tensor:
    """A level whose slope is itself correlated noise: locally linear, then bending over."""
    return 2.0 * standardise(coloured_noise(sampler).cumsum(1))


def drifting_levels(sampler: Sampler) -> Tensor:
    """Plateaus of random height, 2 ... 60 of them."""
    return levels(sampler, sampler.log_uniform(2.0, 60.0))
