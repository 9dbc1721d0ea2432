"""Structural series: season, trend and noise put together in six ways."""

from __future__ import annotations

import torch
from torch import Tensor

from kssm.training.synthetic.periods import draw_periods
from kssm.training.synthetic.sampler import Sampler, mixture
from kssm.training.synthetic.seasons import season
from kssm.training.synthetic.signals import observation_noise
from kssm.training.synthetic.trends import trend


def structural(sampler: Sampler) -> Tensor:
    """Season, trend and noise of random strengths, ``[rows, length]``."""
    seasonal = _strength(sampler, 0.3, 3.0, 0.65 if sampler.short else 0.88) * season(
        sampler, draw_periods(sampler)
    )
    drift = _strength(sampler, 0.1, 3.0, 0.9 if sampler.short else 0.6) * trend(sampler)
    noise = sampler.log_uniform(0.01, 1.0) * observation_noise(sampler)
    forms = [
        (0.56, additive),
        (0.17, multiplicative),
        (0.08, exponential),
        (0.08, heteroscedastic),
        (0.11, rectified),
    ]
    return mixture(sampler, forms, seasonal, drift, noise)


def _strength(sampler: Sampler, low: float, high: float, present: float) -> Tensor:
    return sampler.log_uniform(low, high) * sampler.gate(present)


def additive(_: Sampler, seasonal: Tensor, drift: Tensor, noise: Tensor) -> Tensor:
    """The plain sum."""
    return seasonal + drift + noise


def multiplicative(_: Sampler, seasonal: Tensor, drift: Tensor, noise: Tensor) -> Tensor:
    """Season and noise in proportion to a positive level."""
    level = torch.exp((0.5 * drift).clamp(-5.0, 5.0))
    return level * (1.0 + 0.5 * seasonal.clamp(-1.9, 4.0)) * (1.0 + 0.4 * noise)


def exponential(_: Sampler, seasonal: Tensor, drift: Tensor, noise: Tensor) -> Tensor:
    """A log-linear model: positive and skewed."""
    return torch.exp((0.6 * (seasonal + drift + noise)).clamp(-8.0, 6.0))


def heteroscedastic(_: Sampler, seasonal: Tensor, drift: Tensor, noise: Tensor) -> Tensor:
    """Noise in proportion to the season's magnitude."""
    return seasonal + drift + noise * (seasonal.abs() + 0.1)


def rectified(sampler: Sampler, seasonal: Tensor, drift: Tensor, noise: Tensor) -> Tensor:
    """Zero whenever the sum is negative: daylight, rain, sales out of season."""
    threshold = sampler.uniform(-0.3, 0.3)
    return torch.relu(seasonal + 0.3 * drift + threshold) * (1.0 + 0.5 * noise)
