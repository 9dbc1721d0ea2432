"""Pulses, saw-teeth, steps and shot noise: switched and triggered signals."""

from __future__ import annotations

import torch
from torch import Tensor

from kssm.training.synthetic.periods import draw_periods
from kssm.training.synthetic.sampler import Sampler, mixture
from kssm.training.synthetic.seasons import CYCLES
from kssm.training.synthetic.signals import (
    events,
    exponential_filter,
    observation_noise,
    standardise,
)
from kssm.training.synthetic.trends import trend


def pulses(sampler: Sampler) -> Tensor:
    """A switched waveform with noise and sometimes a trend, ``[rows, length]``."""
    options = [
        (2.0, pulse_train),
        (1.0, decaying_pulses),
        (1.0, saw_tooth),
        (1.0, triangle_wave),
        (1.0, step_sequence),
        (1.0, shot_noise),
        (1.0, switched_levels),
    ]
    noise = sampler.log_uniform(0.002, 0.6) * sampler.gate(0.8) * observation_noise(sampler)
    drift = sampler.log_uniform(0.1, 2.0) * sampler.gate(0.3) * trend(sampler)
    return standardise(mixture(sampler, options)) + noise + drift


def _phase(sampler: Sampler) -> tuple[Tensor, Tensor]:
    """Cycles elapsed ``[rows, length]`` and the period ``[rows, 1]``, three cycles at least."""
    period = draw_periods(sampler)[:, :1].clamp(max=sampler.length / 3)
    return sampler.time() / period + sampler.uniform(0.0, 1.0), period


def _per_cycle(table: Tensor, phase: Tensor) -> Tensor:
    return table.gather(1, phase.floor().long() % table.shape[1])


def _heights(sampler: Sampler, phase: Tensor) -> Tensor:
    spread = sampler.uniform(0.0, 0.5) * sampler.gate(0.5)
    return _per_cycle(torch.exp(spread * sampler.normal(CYCLES)), phase)


def _since_trigger(sampler: Sampler, phase: Tensor) -> Tensor:
    """Phase since the cycle's trigger, which jitters in four of ten rows; negative before it."""
    delay = sampler.uniform(0.0, 0.4) * sampler.gate(0.4)
    return torch.frac(phase) - _per_cycle(sampler.uniform(0.0, 1.0, CYCLES) * delay, phase)


def _gate_signal(sampler: Sampler, phase: Tensor, period: Tensor) -> Tensor:
    """1 for a part of each cycle, one sample at least, else 0."""
    since = _since_trigger(sampler, phase)
    width = torch.maximum(sampler.log_uniform(0.01, 0.5), 1.01 / period)
    return ((since >= 0.0) & (since < width)).float()


def pulse_train(sampler: Sampler) -> Tensor:
    """Rectangular pulses of varying height."""
    phase, period = _phase(sampler)
    return _gate_signal(sampler, phase, period) * _heights(sampler, phase)


def switched_levels(sampler: Sampler) -> Tensor:
    """A two-level square wave."""
    phase, period = _phase(sampler)
    return 2.0 * _gate_signal(sampler, phase, period) - 1.0


def decaying_pulses(sampler: Sampler) -> Tensor:
    """Jumps that decay exponentially within the cycle."""
    phase, _ = _phase(sampler)
    since = _since_trigger(sampler, phase)
    decay = torch.exp(-since.clamp(min=0.0) * sampler.log_uniform(2.0, 30.0))
    return decay * (since >= 0.0) * _heights(sampler, phase)


def saw_tooth(sampler: Sampler) -> Tensor:
    """A linear rise and an instant fall."""
    phase, _ = _phase(sampler)
    return torch.frac(phase)


def triangle_wave(sampler: Sampler) -> Tensor:
    """Linear rises and falls of equal length."""
    phase, _ = _phase(sampler)
    return 1.0 - (2.0 * torch.frac(phase) - 1.0).abs()


def step_sequence(sampler: Sampler) -> Tensor:
    """A fixed sequence of 2 ... 11 levels, one a cycle, over and over."""
    phase, _ = _phase(sampler)
    position = phase.floor().long() % sampler.integers(2, 12)
    return sampler.normal(12).gather(1, position)


def shot_noise(sampler: Sampler) -> Tensor:
    """Random impulses that decay exponentially: rain on a river, alarms, sparks."""
    size = torch.exp(0.7 * sampler.normal(sampler.length))
    impulses = events(sampler, sampler.log_uniform(3.0, 150.0)) * size
    return exponential_filter(impulses, sampler.log_uniform(1.0, sampler.length / 20))
