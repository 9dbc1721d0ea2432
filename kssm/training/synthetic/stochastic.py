"""Stochastic series: stationary noise, switching regimes, random walks and their exponentials."""

from __future__ import annotations

import torch
from torch import Tensor

from kssm.training.synthetic.sampler import Sampler, mixture
from kssm.training.synthetic.signals import (
    coloured_noise,
    events,
    heavy_noise,
    slow_noise,
    standardise,
)


def stochastic(sampler: Sampler) -> Tensor:
    """A process without a fixed season, ``[rows, length]``."""
    options = [
        (2.0, coloured_noise),
        (2.0, regime_switching),
        (4.0, volatile_walk),
        (2.0, geometric_walk),
        (2.0, lambda s: volatile_walk(s) + 0.3 * coloured_noise(s)),
    ]
    return mixture(sampler, options)


def regime_switching(sampler: Sampler) -> Tensor:
    """Two processes of different level and size that take turns."""
    other = coloured_noise(sampler) * sampler.log_uniform(0.2, 3.0) + sampler.uniform(-3.0, 3.0)
    switches = events(sampler, sampler.log_uniform(2.0, 40.0)).cumsum(1) % 2
    return torch.where(switches > 0.0, other, coloured_noise(sampler))


def volatile_walk(sampler: Sampler) -> Tensor:
    """A random walk with heavy tails, drift and slowly changing volatility; deviation 3."""
    volatility = torch.exp(sampler.uniform(0.0, 1.0) * slow_noise(sampler))
    steps = heavy_noise(sampler) * volatility + sampler.uniform(-0.05, 0.05)
    return 3.0 * standardise(steps.cumsum(1))


def geometric_walk(sampler: Sampler) -> Tensor:
    """The exponential of a random walk: prices, populations."""
    return torch.exp(volatile_walk(sampler) * sampler.uniform(0.05, 0.5))
