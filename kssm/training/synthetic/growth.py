"""Growth series: logistic and Gompertz curves, exponentials, power laws, cumulated counts."""

from __future__ import annotations

import torch
from torch import Tensor

from kssm.training.synthetic.sampler import Sampler, mixture
from kssm.training.synthetic.signals import (
    coloured_noise,
    observation_noise,
    peak_normalise,
    slow_noise,
)
from kssm.training.synthetic.trends import relative_time


def growth(sampler: Sampler) -> Tensor:
    """A growing or saturating curve with proportional noise, ``[rows, length]``."""
    options = [
        (0.20, logistic),
        (0.15, gompertz),
        (0.20, compound),
        (0.15, power),
        (0.30, accumulated),
    ]
    noise = sampler.log_uniform(0.001, 0.1) * sampler.gate(0.8) * observation_noise(sampler)
    curve = mixture(sampler, options)
    return curve * (1.0 + noise)


def logistic(sampler: Sampler) -> Tensor:
    """Growth to a ceiling, symmetric about its middle."""
    distance = relative_time(sampler) - sampler.uniform(0.0, 1.2)
    return torch.sigmoid(sampler.log_uniform(3.0, 40.0) * distance)


def gompertz(sampler: Sampler) -> Tensor:
    """Growth to a ceiling, fast at first and slow later."""
    distance = relative_time(sampler) - sampler.uniform(0.0, 0.8)
    return torch.exp(-torch.exp((-sampler.log_uniform(3.0, 30.0) * distance).clamp(-20.0, 4.0)))


def compound(sampler: Sampler) -> Tensor:
    """Exponential growth whose rate wanders."""
    rate = sampler.uniform(-3.0, 4.0) + sampler.uniform(0.0, 3.0) * slow_noise(sampler)
    logarithm = (rate / sampler.length).cumsum(1)
    return torch.exp(logarithm.clamp(-12.0, 12.0) - logarithm.amax(1, keepdim=True).clamp(-12, 12))


def power(sampler: Sampler) -> Tensor:
    """A power of time, with an exponent of 0.3 ... 3."""
    return (relative_time(sampler) + 0.01).pow(sampler.log_uniform(0.3, 3.0))


def accumulated(sampler: Sampler) -> Tensor:
    """The running total of a positive rate that rises and falls: cumulated cases or sales."""
    wave = sampler.uniform(0.5, 3.0) * slow_noise(sampler)
    rate = torch.exp(wave + sampler.uniform(0.0, 0.5) * coloured_noise(sampler))
    return peak_normalise(rate.cumsum(1))
