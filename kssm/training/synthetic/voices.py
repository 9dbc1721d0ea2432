"""Sounds: voices by a harmonic and noise model of the vocal tract, and plucked notes.

Sample rates are left open: frequencies are in cycles a sample, those of speech at 8 kHz.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from kssm.training.synthetic.sampler import Sampler, constant, mixture
from kssm.training.synthetic.signals import TWO_PI, coloured_noise, standardise

HARMONICS: Final = 40
_PHONE: Final = 600
# Lowest and highest frequency and bandwidth of four formants, in cycles a sample.
_FORMANTS: Final = (
    (0.030, 0.110, 0.005, 0.014),
    (0.090, 0.300, 0.007, 0.020),
    (0.240, 0.400, 0.010, 0.030),
    (0.380, 0.480, 0.015, 0.040),
)


def sounds(sampler: Sampler) -> Tensor:
    """Voices and notes, each row of deviation 1, ``[rows, length]``."""
    return standardise(mixture(sampler, [(0.85, voice), (0.15, notes)]))


def voice(sampler: Sampler) -> Tensor:
    """Something like speech: phones of changing pitch, formants, voicing and loudness."""
    formants = [
        (_track(sampler, low, high), _track(sampler, narrow, wide))
        for low, high, narrow, wide in _FORMANTS
    ]
    loudness = _track(sampler, -2.0, 1.0).clamp(max=0.3).mul(2.0).exp()
    voicing = (_track(sampler, -0.7, 2.0) * 4.0).sigmoid()
    breath = sampler.log_uniform(0.001, 0.1)
    voiced = _voiced(sampler, formants)
    hiss = _hiss(sampler)
    sound = voicing * voiced + ((1.0 - voicing) * sampler.log_uniform(0.05, 0.6) + breath) * hiss
    floor = sampler.log_uniform(1e-4, 3e-2) * coloured_noise(sampler)
    return standardise(loudness * sound) + floor


def notes(sampler: Sampler) -> Tensor:
    """Up to three notes at once, struck now and then, their overtones fading."""
    return _note(sampler) + sampler.gate(0.6) * _note(sampler) + sampler.gate(0.4) * _note(sampler)


def _voiced(sampler: Sampler, formants: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Harmonics of a moving pitch behind the formants' (minimum-phase) responses."""
    base = sampler.log_uniform(0.0085, 0.042)
    jitter = 1.0 + sampler.log_uniform(1e-3, 3e-2) * _smooth(sampler, 80)
    pitch = (base * torch.exp2(_track(sampler, -0.35, 0.35)) * jitter).clamp(0.005, 0.06)
    phase = torch.frac(pitch.double().cumsum(1)).float()
    order = torch.arange(1, HARMONICS + 1, device=sampler.device).view(1, -1, 1)
    frequency = order * pitch.unsqueeze(1)
    gain = order ** -sampler.uniform(0.7, 2.2).unsqueeze(-1) * (frequency < 0.49)
    angle = TWO_PI * order * phase.unsqueeze(1) + _response_phase(frequency, formants)
    gain = gain * _response_gain(frequency, formants)
    return standardise((gain * angle.cos()).sum(1))


def _response_gain(frequency: Tensor, formants: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    gain = torch.ones_like(frequency)
    for centre, width in formants:
        for side in (1.0, -1.0):
            radius, turn = _pole(frequency, centre, width, side)
            gain = gain * (1.0 - 2.0 * radius * turn.cos() + radius.square()).rsqrt()
    return gain


def _response_phase(frequency: Tensor, formants: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    phase = torch.zeros_like(frequency)
    for centre, width in formants:
        for side in (1.0, -1.0):
            radius, turn = _pole(frequency, centre, width, side)
            phase = phase - torch.atan2(radius * turn.sin(), 1.0 - radius * turn.cos())
    return phase


def _pole(frequency: Tensor, centre: Tensor, width: Tensor, side: float) -> tuple[Tensor, Tensor]:
    """Radius and angular distance of one of a formant's two poles."""
    radius = torch.exp(-0.5 * TWO_PI * width).unsqueeze(1)
    return radius, TWO_PI * (frequency - side * centre.unsqueeze(1))


def _hiss(sampler: Sampler) -> Tensor:
    """Noise whose colour changes from phone to phone."""
    share = _track(sampler, 0.0, 1.0)
    return share * coloured_noise(sampler) + (1.0 - share) * _bright(sampler)


def _bright(sampler: Sampler) -> Tensor:
    noise = sampler.normal(sampler.length + 1)
    tilt = sampler.uniform(-0.5, 0.95)
    return standardise(noise[:, 1:] - tilt * noise[:, :-1])


def _note(sampler: Sampler) -> Tensor:
    time = sampler.time()
    struck = sampler.uniform(-0.5, 0.9) * sampler.length
    age = (time - struck).clamp_min(0.0)
    decay = sampler.log_uniform(400.0, 2e4)
    pitch = sampler.log_uniform(0.01, 0.2)
    stretch = sampler.log_uniform(1e-6, 1e-3)
    sound = torch.zeros(sampler.rows, sampler.length, device=sampler.device)
    for order in range(1, 9):
        frequency = order * pitch * (1.0 + stretch * order * order)
        strength = sampler.uniform(0.0, 1.0) / order * (frequency < 0.49)
        fade = torch.exp(-age * order**0.5 / decay)
        sound = sound + strength * fade * torch.sin(TWO_PI * torch.frac(frequency * age))
    return sound * (time > struck)


def _track(sampler: Sampler, low: float, high: float) -> Tensor:
    """A target for every phone, with glides between them, ``[rows, length]``."""
    count = max(2, sampler.length // _PHONE + 2)
    targets = sampler.uniform(low, high, count)
    held = targets.repeat_interleave(_PHONE, 1)
    start = sampler.integers(0, max(1, held.shape[1] - sampler.length + 1))
    index = (start + torch.arange(sampler.length, device=sampler.device)).clamp(
        max=held.shape[1] - 1
    )
    stepped = held.gather(1, index)
    glide = 2 * _GLIDE + 1
    padded = F.pad(stepped.unsqueeze(1), (_GLIDE, _GLIDE), mode="replicate")
    return F.avg_pool1d(padded, glide, stride=1).squeeze(1)


_GLIDE: Final = 120


def _smooth(sampler: Sampler, span: int) -> Tensor:
    """Smoothed white noise of deviation about 1."""
    count = sampler.length // span + 2
    knots = sampler.normal(count).unsqueeze(1)
    full = F.interpolate(knots, size=count * span, mode="linear", align_corners=False)
    return full.squeeze(1)[:, : sampler.length]


def resonators(sampler: Sampler, strength: float, count: int = 3) -> Tensor:
    """Responses ``[rows, bins]`` of random mild filters, for ``rfft`` of twice the length."""
    bins = torch.arange(sampler.length + 1, device=sampler.device, dtype=torch.float32)
    angle = bins[None] * (torch.pi / sampler.length)
    response = torch.ones_like(angle, dtype=torch.complex64)
    unit = constant([1.0], sampler.device)
    for _ in range(count):
        radius = sampler.uniform(0.0, strength)
        centre = sampler.uniform(0.0, torch.pi)
        pair = _pair(angle, radius, centre, unit) / _pair(
            angle, sampler.uniform(0.0, strength), sampler.uniform(0.0, torch.pi), unit
        )
        response = response * pair
    return response


def _pair(angle: Tensor, radius: Tensor, centre: Tensor, unit: Tensor) -> Tensor:
    one = torch.polar(unit.expand_as(angle).contiguous(), -angle)
    squared = torch.polar(unit.expand_as(angle).contiguous(), -2.0 * angle)
    return 1.0 - 2.0 * radius * centre.cos() * one + radius.square() * squared
