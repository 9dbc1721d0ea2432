"""Augmentations of finished series: each acts on every row with its own probability.

All work on standardised rows ``[rows, length]`` except ``offset`` and ``scale``, which come last.
``augment`` applies them in the order of ``AugmentationConfig``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kssm.training.synthetic.config import AugmentationConfig
from kssm.training.synthetic.sampler import Sampler, constant
from kssm.training.synthetic.signals import events, peak_normalise, standardise

SMOOTHING_WIDTHS = (3, 5, 9, 17)


def augment(sampler: Sampler, x: Tensor, config: AugmentationConfig) -> Tensor:
    """Turns raw family output into training series of random level and scale.

    Rows that touch zero exactly (counts, rain, daylight) stay anchored there: they are rescaled
    but neither shifted nor quantised nor censored.
    """
    z = mixup(sampler, peak_normalise(x), config.mixup)
    z = smooth(sampler, stretch(sampler, z, config.stretch), config.smooth)
    z = flip_time(sampler, flip_sign(sampler, z, config.flip_sign), config.flip_time)
    anchored = z.abs().amin(1, keepdim=True) == 0.0
    free = _distort(sampler, standardise(z), config)
    deviation = z.std(1, keepdim=True) + 1e-6
    z = torch.where(anchored, z / deviation, offset(sampler, free, config.offset))
    z = dropouts(sampler, z, config.dropouts)
    return scale(sampler, z, config.scale_deviation)


def _distort(sampler: Sampler, z: Tensor, config: AugmentationConfig) -> Tensor:
    z = censor_above(sampler, z, config.censor_above)
    z = censor_below(sampler, z, config.censor_below)
    z = outliers(sampler, quantise(sampler, z, config.quantise), config.outliers)
    return stuck(sampler, z, config.stuck)


def mixup(sampler: Sampler, x: Tensor, probability: float) -> Tensor:
    """A weighted sum of two standardised rows."""
    z = standardise(x)
    mixed = torch.lerp(z[sampler.permutation()], z, sampler.uniform(0.1, 0.9))
    return torch.where(sampler.chance(probability), mixed, x)


def stretch(sampler: Sampler, x: Tensor, probability: float) -> Tensor:
    """The beginning of the row, slowed down 1.5 ... 8 times: an over-sampled sensor."""
    factor = sampler.log_uniform(1.5, 8.0)
    position = sampler.time() / torch.where(sampler.chance(probability), factor, 1.0)
    left = position.long()
    right = (left + 1).clamp(max=sampler.length - 1)
    return torch.lerp(x.gather(1, left), x.gather(1, right), position - left)


def smooth(sampler: Sampler, x: Tensor, probability: float) -> Tensor:
    """A trailing moving average over 3, 5, 9 or 17 samples."""
    widths = constant(SMOOTHING_WIDTHS, sampler.device).long()
    width = widths[sampler.integers(0, len(SMOOTHING_WIDTHS))]
    total = torch.nn.functional.pad((x - x[:, :1]).double().cumsum(1), (1, 0))
    position = torch.arange(1, sampler.length + 1, device=sampler.device)[None]
    start = (position - width).clamp(min=0)
    mean = (total[:, 1:] - total.gather(1, start)) / (position - start)
    return torch.where(sampler.chance(probability), mean.to(x.dtype) + x[:, :1], x)


def flip_sign(sampler: Sampler, x: Tensor, probability: float) -> Tensor:
    """Upside down."""
    return torch.where(sampler.chance(probability), -x, x)


def flip_time(sampler: Sampler, x: Tensor, probability: float) -> Tensor:
    """Backwards."""
    return torch.where(sampler.chance(probability), x.flip(1), x)


def censor_above(sampler: Sampler, z: Tensor, probability: float) -> Tensor:
    """Cut at 0.3 ... 1.5 deviations above the mean."""
    ceiling = sampler.uniform(0.3, 1.5)
    return torch.where(sampler.chance(probability), torch.minimum(z, ceiling), z)


def censor_below(sampler: Sampler, z: Tensor, probability: float) -> Tensor:
    """Cut at 0.2 ... 1.2 deviations below the mean."""
    floor = -sampler.uniform(0.2, 1.2)
    return torch.where(sampler.chance(probability), torch.maximum(z, floor), z)


def quantise(sampler: Sampler, z: Tensor, probability: float) -> Tensor:
    """Rounded to multiples of 0.01 ... 0.5 deviations."""
    step = sampler.log_uniform(0.01, 0.5)
    return torch.where(sampler.chance(probability), (z / step).round() * step, z)


def outliers(sampler: Sampler, z: Tensor, probability: float) -> Tensor:
    """Single samples off by several deviations, one half to ten of them a row."""
    size = sampler.normal(sampler.length) * sampler.log_uniform(2.0, 12.0)
    hits = events(sampler, sampler.log_uniform(0.5, 10.0))
    return z + hits * size * sampler.gate(probability)


def _random_window(sampler: Sampler) -> Tensor:
    """Bool ``[rows, length]``: one window of up to a sixteenth of the series."""
    time = sampler.time()
    start = sampler.uniform(0.0, float(sampler.length))
    width = sampler.log_uniform(2.0, max(sampler.length / 16, 3.0))
    return (time >= start) & (time < start + width)


def stuck(sampler: Sampler, z: Tensor, probability: float) -> Tensor:
    """Two windows in which a failed sensor repeats its last value."""
    held = (_random_window(sampler) | _random_window(sampler)) & sampler.chance(probability)
    position = torch.arange(sampler.length, device=sampler.device).expand(sampler.rows, -1)
    latest = torch.where(held, 0, position).cummax(1).values
    return z.gather(1, latest)


def dropouts(sampler: Sampler, z: Tensor, probability: float) -> Tensor:
    """Two windows in which a failed sensor reports zero."""
    lost = (_random_window(sampler) | _random_window(sampler)) & sampler.chance(probability)
    return torch.where(lost, 0.0, z)


def offset(sampler: Sampler, z: Tensor, probability: float) -> Tensor:
    """Shifted by a normal number times 0.1 ... 30 deviations."""
    shift = sampler.normal() * sampler.log_uniform(0.1, 30.0)
    return z + shift * sampler.gate(probability)


def scale(sampler: Sampler, z: Tensor, deviation: float) -> Tensor:
    """Multiplied by a log-normal factor."""
    return z * torch.exp(deviation * sampler.normal())
