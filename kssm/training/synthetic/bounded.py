"""Bounded series: utilisation, tank levels, temperatures under control, speeds below a limit."""

from __future__ import annotations

import torch
from torch import Tensor

from kssm.training.synthetic.periods import draw_periods
from kssm.training.synthetic.profiles import read_profile, read_steps, sharp_profile, smooth_profile
from kssm.training.synthetic.sampler import Sampler, mixture
from kssm.training.synthetic.signals import (
    exponential_filter,
    levels,
    observation_noise,
    peak_normalise,
    slow_noise,
    standardise,
)


def bounded(sampler: Sampler) -> Tensor:
    """Smooth signals that press against limits, ``[rows, length]``."""
    options = [
        (0.45, saturated_drift),
        (0.30, relaxation),
        (0.25, reflected_walk),
    ]
    noise = sampler.log_uniform(0.001, 0.1) * sampler.gate(0.8) * observation_noise(sampler)
    return mixture(sampler, options) + noise


def limited(sampler: Sampler, x: Tensor) -> Tensor:
    """Bounds of random kind: none, two soft ones, one soft, hard ones, one hard."""
    options = [
        (0.40, lambda _, x: x),
        (0.18, soft_limits),
        (0.17, soft_ceiling),
        (0.13, hard_limits),
        (0.12, hard_ceiling),
    ]
    return mixture(sampler, options, x)


def soft_limits(sampler: Sampler, x: Tensor) -> Tensor:
    """A logistic curve between a floor and a ceiling."""
    gain = sampler.log_uniform(0.7, 6.0)
    return 2.0 * torch.sigmoid(gain * (x + sampler.uniform(-0.7, 0.7)))


def _facing(sampler: Sampler) -> Tensor:
    """+1 or -1: whether a one-sided limit lies above or below."""
    return 1.0 - 2.0 * sampler.gate(0.4)


def soft_ceiling(sampler: Sampler, x: Tensor) -> Tensor:
    """Values approach one limit smoothly and move freely on the other side."""
    side = _facing(sampler)
    gain = sampler.log_uniform(1.0, 10.0)
    distance = gain * (sampler.uniform(-0.3, 0.8) - side * x)
    return -side * torch.nn.functional.softplus(distance) / gain


def hard_limits(sampler: Sampler, x: Tensor) -> Tensor:
    """Cut at a floor and a ceiling."""
    low = sampler.uniform(-1.2, 0.0)
    return torch.minimum(torch.maximum(x, low), low + sampler.uniform(0.5, 2.0))


def hard_ceiling(sampler: Sampler, x: Tensor) -> Tensor:
    """Cut on one side only."""
    side = _facing(sampler)
    return side * torch.minimum(side * x, sampler.uniform(-0.3, 1.0))


def saturated_drift(sampler: Sampler) -> Tensor:
    """Slow noise plus a cycle, pressed into soft or hard limits."""
    period = draw_periods(sampler)[:, :1]
    phase = sampler.time() / period + sampler.uniform(0.0, 1.0)
    cycle = read_profile(smooth_profile(sampler, period), phase)
    weight = sampler.uniform(0.0, 1.5)
    drive = weight * cycle + sampler.uniform(0.1, 1.2) * slow_noise(sampler)
    return mixture(sampler, [(0.6, soft_limits), (0.4, hard_limits)], drive)


def relaxation(sampler: Sampler) -> Tensor:
    """A first-order response to a target that switches at random or with a cycle."""
    target = mixture(sampler, [(0.4, _random_targets), (0.6, _cyclic_targets)])
    time_constant = sampler.log_uniform(2.0, sampler.length / 10)
    centred = target - target.mean(1, keepdim=True)  # a start near the mean settles soon
    return peak_normalise(exponential_filter(centred, time_constant))


def _random_targets(sampler: Sampler) -> Tensor:
    return levels(sampler, sampler.log_uniform(3.0, 60.0))


def _cyclic_targets(sampler: Sampler) -> Tensor:
    period = draw_periods(sampler)[:, :1].clamp(max=sampler.length / 2)
    phase = sampler.time() / period + sampler.uniform(0.0, 1.0)
    return read_steps(sharp_profile(sampler), phase)


def reflected_walk(sampler: Sampler) -> Tensor:
    """A smooth walk that turns round at a floor and a ceiling."""
    walk = standardise(slow_noise(sampler).cumsum(1)) * sampler.uniform(0.5, 3.0)
    return (walk % 4.0 - 2.0).abs() - 1.0
