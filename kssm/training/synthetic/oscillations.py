"""Chirps and damped oscillations: frequencies and amplitudes that move."""

from __future__ import annotations

import torch
from torch import Tensor

from kssm.training.synthetic.sampler import Sampler, mixture
from kssm.training.synthetic.signals import (
    TWO_PI,
    events,
    observation_noise,
    slow_noise,
    standardise,
)

HIGHEST_FREQUENCY = 0.45  # cycles a sample


def oscillations(sampler: Sampler) -> Tensor:
    """A chirp or a ringing resonance with noise, ``[rows, length]``."""
    noise = sampler.log_uniform(0.005, 0.5) * observation_noise(sampler)
    clean = mixture(sampler, [(0.75, chirp), (0.25, ringing)])
    return standardise(clean) + noise


def _base_frequency(sampler: Sampler) -> Tensor:
    return 1.0 / sampler.log_uniform(4.0, min(300.0, sampler.length / 3))


def chirp(sampler: Sampler) -> Tensor:
    """An oscillation of drifting or sweeping frequency and slowly changing size."""
    drift = torch.exp(sampler.uniform(0.0, 0.5) * slow_noise(sampler))
    sweep = torch.exp(sampler.uniform(-1.0, 1.0) * sampler.time() / sampler.length)
    bend = torch.where(sampler.chance(0.5), drift, sweep)
    frequency = (_base_frequency(sampler) * bend).clamp(max=HIGHEST_FREQUENCY)
    angle = TWO_PI * torch.frac(frequency.cumsum(1) + sampler.uniform(0.0, 1.0))
    overtone = torch.cos(2.0 * angle + sampler.uniform(0.0, TWO_PI))
    wave = torch.cos(angle) + sampler.uniform(0.0, 0.8) * overtone
    wave = mixture(sampler, [(0.7, lambda _, x: x), (0.3, _distorted)], wave)
    return wave * torch.exp(sampler.uniform(0.0, 0.8) * slow_noise(sampler))


def _distorted(sampler: Sampler, wave: Tensor) -> Tensor:
    """Flattens or sharpens the peaks by a power of the magnitude."""
    return wave.sign() * wave.abs().clamp(min=1e-6).pow(sampler.uniform(0.2, 2.0))


def ringing(sampler: Sampler) -> Tensor:
    """A damped oscillation that random impulses start again."""
    restarts = events(sampler, sampler.log_uniform(2.0, 20.0))
    time = sampler.time().expand(sampler.rows, -1)
    latest = torch.where(restarts > 0.0, time, 0.0).cummax(1).values
    age = time - latest
    damping = torch.exp(
        -age / sampler.log_uniform(min(10.0, sampler.length / 8), sampler.length / 4)
    )
    return damping * torch.cos(TWO_PI * _base_frequency(sampler) * age)
