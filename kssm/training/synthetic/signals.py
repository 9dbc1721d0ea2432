"""Building blocks that the families share: scaling, noises, random events, filters."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kssm.training.synthetic.sampler import Sampler, mixture

TWO_PI = 2.0 * math.pi


def standardise(x: Tensor) -> Tensor:
    """Rows with mean 0 and deviation 1; a constant row becomes 0."""
    centred = x - x.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True).sqrt() + 1e-6)


def peak_normalise(x: Tensor) -> Tensor:
    """Rows scaled so that the largest magnitude is 1; a zero row stays 0."""
    return x / (x.abs().amax(1, keepdim=True) + 1e-6)


def coloured_noise(sampler: Sampler) -> Tensor:
    """Stationary Gaussian noise of a random colour, standardised, ``[rows, length]``.

    Autoregressive of order one and two, power laws, Matern and squared-exponential spectra,
    with correlation times from one sample to a quarter of the series.
    """
    spectra = [(0.2, _ar1), (0.2, _resonance), (0.2, _power_law), (0.2, _matern), (0.2, _rbf)]
    return _shaped_noise(sampler, mixture(sampler, spectra))


def slow_noise(sampler: Sampler) -> Tensor:
    """Smooth drift: like ``coloured_noise`` with correlation times of length/64 ... length/2."""
    spectra = [(0.2, _slow_ar1), (0.2, _slow_power_law), (0.3, _slow_matern), (0.3, _slow_rbf)]
    return _shaped_noise(sampler, mixture(sampler, spectra))


def _shaped_noise(sampler: Sampler, gain: Tensor) -> Tensor:
    """Noise whose spectrum has magnitude ``gain``; twice the length hides the wrap-around."""
    bins = gain.shape[1]
    parts = sampler.normal(2 * bins).view(sampler.rows, bins, 2)
    spectrum = torch.view_as_complex(parts) * gain
    return standardise(torch.fft.irfft(spectrum, n=2 * sampler.length)[:, : sampler.length])


def _frequencies(sampler: Sampler) -> Tensor:
    """Angular frequencies of the doubled window, ``[1, length + 1]``."""
    bins = torch.arange(sampler.length + 1, device=sampler.device, dtype=torch.float32)
    return (bins * (math.pi / sampler.length))[None]


def _ar1_gain(frequency: Tensor, time_constant: Tensor) -> Tensor:
    phi = torch.exp(-1.0 / time_constant)
    return (1.0 - 2.0 * phi * torch.cos(frequency) + phi.square()).rsqrt()


def _ar1(sampler: Sampler) -> Tensor:
    return _ar1_gain(_frequencies(sampler), sampler.log_uniform(1.0, sampler.length / 4))


def _slow_ar1(sampler: Sampler) -> Tensor:
    low, high = sampler.length / 64, sampler.length / 2
    return _ar1_gain(_frequencies(sampler), sampler.log_uniform(low, high))


def _resonance(sampler: Sampler) -> Tensor:
    """A noisy oscillator (autoregressive of order two): a period of 3 ... 400 samples."""
    frequency = _frequencies(sampler)
    centre = TWO_PI / sampler.log_uniform(3.0, min(400.0, sampler.length / 3))
    radius = torch.exp(-1.0 / sampler.log_uniform(3.0, sampler.length / 4))
    below = 1.0 - 2.0 * radius * torch.cos(frequency - centre) + radius.square()
    above = 1.0 - 2.0 * radius * torch.cos(frequency + centre) + radius.square()
    return (below * above).rsqrt()


def _power_gain(sampler: Sampler, exponent: Tensor) -> Tensor:
    floor = math.pi / sampler.length
    return _frequencies(sampler).clamp(min=floor).pow(-exponent)


def _power_law(sampler: Sampler) -> Tensor:
    return _power_gain(sampler, sampler.uniform(0.2, 1.4))


def _slow_power_law(sampler: Sampler) -> Tensor:
    return _power_gain(sampler, sampler.uniform(1.0, 1.8))


def _matern_gain(sampler: Sampler, scale: Tensor) -> Tensor:
    order = sampler.uniform(0.5, 2.5)
    return (1.0 + (_frequencies(sampler) * scale).square()).pow(-0.5 * (order + 0.5))


def _matern(sampler: Sampler) -> Tensor:
    return _matern_gain(sampler, sampler.log_uniform(2.0, sampler.length / 4))


def _slow_matern(sampler: Sampler) -> Tensor:
    return _matern_gain(sampler, sampler.log_uniform(sampler.length / 64, sampler.length / 2))


def _rbf_gain(sampler: Sampler, scale: Tensor) -> Tensor:
    return torch.exp(-0.25 * (_frequencies(sampler) * scale).square())


def _rbf(sampler: Sampler) -> Tensor:
    return _rbf_gain(sampler, sampler.log_uniform(2.0, sampler.length / 4))


def _slow_rbf(sampler: Sampler) -> Tensor:
    return _rbf_gain(sampler, sampler.log_uniform(sampler.length / 64, sampler.length / 2))


def heavy_noise(sampler: Sampler) -> Tensor:
    """White noise, in half of the rows with heavy tails (log-normal scale mixture)."""
    weight = sampler.uniform(0.0, 1.2) * sampler.gate(0.5)
    spread = torch.exp(weight * sampler.normal(sampler.length) - weight.square() / 2)
    return sampler.normal(sampler.length) * spread


def observation_noise(sampler: Sampler) -> Tensor:
    """White, coloured or both, in three of ten rows with a slowly changing strength."""
    white = standardise(heavy_noise(sampler))
    forms = [
        (0.35, lambda _, x: x),
        (0.45, lambda s, _: coloured_noise(s)),
        (0.20, lambda s, x: 0.7 * coloured_noise(s) + 0.5 * x),
    ]
    noise = mixture(sampler, forms, white)
    return mixture(sampler, [(0.7, lambda _, x: x), (0.3, _modulated)], noise)


def _modulated(sampler: Sampler, noise: Tensor) -> Tensor:
    return noise * torch.exp(sampler.uniform(0.0, 1.0) * slow_noise(sampler))


def events(sampler: Sampler, expected: Tensor) -> Tensor:
    """Float 0/1 ``[rows, length]``: independent events, ``expected [rows, 1]`` a row."""
    return (sampler.uniform(0.0, 1.0, sampler.length) < expected / sampler.length).float()


def rare_events(sampler: Sampler) -> Tensor:
    """Between one half and twenty events a row, expected."""
    return events(sampler, sampler.log_uniform(0.5, 20.0))


def levels(sampler: Sampler, changes: Tensor) -> Tensor:
    """Piecewise constant: a new standard normal level at each of ``changes`` events a row."""
    segment = events(sampler, changes).cumsum(1).long().clamp(max=399)
    return sampler.normal(400).gather(1, segment)


def exponential_filter(x: Tensor, time_constant: Tensor) -> Tensor:
    """Causal convolution of rows with ``exp(-t / time_constant)``, starting from rest."""
    length = x.shape[1]
    time = torch.arange(length, device=x.device, dtype=x.dtype)[None]
    kernel = torch.fft.rfft(torch.exp(-time / time_constant), n=2 * length)
    return torch.fft.irfft(torch.fft.rfft(x, n=2 * length) * kernel, n=2 * length)[:, :length]
