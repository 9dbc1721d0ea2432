"""Random windows of real series: resampled, standardised, augmented."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kssm.errors import InvalidInputError
from kssm.training.synthetic.sampler import Sampler, constant

FEWEST_PRESENT = 32  # a crop with fewer values gives way to another one
MAX_MAGNITUDE = 1e4  # deviations from zero that a crop may lie at


@dataclass(frozen=True)
class CropConfig:
    """Random changes to a crop.

    ``factors`` are drawn uniformly: every n-th sample or the mean of n samples, as far as the
    series is long enough. ``stretch`` is the probability of interpolating instead, 1 ...
    ``stretch_max`` times slower. The others are probabilities too; ``scale_deviation`` is that
    of the logarithm of the final scale.
    """

    factors: tuple[int, ...] = (*(1,) * 10, 2, 2, 3, 3, 4, 4, 6, 12, 12, 24)
    stretch: float = 0.05
    stretch_max: float = 4.0
    mixup: float = 0.15
    flip_sign: float = 0.15
    flip_time: float = 0.05
    scale_deviation: float = 2.0

    def __post_init__(self) -> None:
        probabilities = (self.stretch, self.mixup, self.flip_sign, self.flip_time)
        if any(not 0.0 <= p <= 1.0 for p in probabilities):
            raise InvalidInputError("crop probabilities must lie in 0 ... 1", code="invalid_config")
        if not self.factors or min(self.factors) < 1 or self.stretch_max < 1.0:
            raise InvalidInputError("crop factors must be >= 1", code="invalid_config")


def draw_crops(
    sampler: Sampler, values: Tensor, starts: Tensor, lengths: Tensor, config: CropConfig
) -> Tensor:
    """Windows of the series at ``starts``/``lengths [rows]`` in the flat ``values``.

    Returns ``[rows, sampler.length]`` with NaN for missing samples and past the series' end.
    """
    starts, lengths = starts[:, None], lengths[:, None]
    factor = _factors(sampler, lengths, config)
    needed = torch.minimum(factor * sampler.length, lengths)
    room = lengths - needed
    begin = (sampler.uniform(0.0, 1.0).double() * (room + 1)).long().clamp(max=room)
    reduced = _reduced(sampler, values, starts + begin, needed, factor, max(config.factors))
    slow = _stretched(sampler, values, starts + begin, needed, config.stretch_max)
    chosen = torch.where(sampler.chance(config.stretch) & (factor == 1), slow, reduced)
    return _from_first_present(chosen)


def _factors(sampler: Sampler, lengths: Tensor, config: CropConfig) -> Tensor:
    """Aggregation factors ``[rows, 1]``, 1 where a larger one would leave too little."""
    table = constant(config.factors, sampler.device).long()
    factor = table[sampler.integers(0, len(config.factors))]
    enough = lengths // factor >= max(64, sampler.length // 4)
    return torch.where(enough, factor, 1)


def _reduced(
    sampler: Sampler, values: Tensor, origin: Tensor, needed: Tensor, factor: Tensor, largest: int
) -> Tensor:
    """Every ``factor``-th sample, or in half of the rows the mean of ``factor`` samples."""
    position = torch.arange(sampler.length, device=sampler.device)[None] * factor
    taken = torch.where(sampler.chance(0.5), 1, factor)
    total = torch.zeros(sampler.rows, sampler.length, device=sampler.device)
    present = torch.zeros_like(total)
    for shift in range(largest):
        index = position + shift
        found = values[(origin + index).clamp(max=values.shape[0] - 1)]
        usable = (shift < taken) & (index < needed) & ~found.isnan()
        total += torch.where(usable, found, 0.0)
        present += usable
    return torch.where(present > 0.0, total / present, torch.nan)


def _stretched(
    sampler: Sampler, values: Tensor, origin: Tensor, needed: Tensor, slowest: float
) -> Tensor:
    """The window's beginning, interpolated linearly at a finer step."""
    position = sampler.time() / sampler.uniform(1.0, slowest)
    left = position.long()
    ends = torch.stack([left, left + 1]) + origin
    before, after = values[ends.clamp(max=values.shape[0] - 1)]
    inside = left + 1 < needed
    return torch.where(inside, torch.lerp(before, after, position - left), torch.nan)


def _from_first_present(x: Tensor) -> Tensor:
    """Rows moved so that they start with a value; what becomes free at the end is NaN."""
    length = x.shape[1]
    first = (~x.isnan()).float().argmax(1, keepdim=True)
    position = torch.arange(length, device=x.device)[None] + first
    moved = x.gather(1, position.clamp(max=length - 1))
    return torch.where(position < length, moved, torch.nan)


def augment_crops(sampler: Sampler, x: Tensor, config: CropConfig) -> Tensor:
    """Crops with deviation 1, mixed up, flipped and scaled at random; finite or NaN."""
    z = _replace_empty(sampler, unit_deviation(x).clamp(-MAX_MAGNITUDE, MAX_MAGNITUDE))
    mixed = torch.lerp(z[sampler.permutation()], z, sampler.uniform(0.1, 0.9))
    z = torch.where(sampler.chance(config.mixup) & _filled(mixed), mixed, z)
    z = torch.where(sampler.chance(config.flip_sign), -z, z)
    backwards = _from_first_present(z.flip(1))
    z = torch.where(sampler.chance(config.flip_time), backwards, z)
    return z * torch.exp(config.scale_deviation * sampler.normal())


def _filled(x: Tensor) -> Tensor:
    """Whether a row has enough values, ``[rows, 1]``."""
    return (~x.isnan()).sum(1, keepdim=True) >= FEWEST_PRESENT


def _replace_empty(sampler: Sampler, z: Tensor) -> Tensor:
    """Another row of the batch, or failing that a random walk, in place of nearly empty rows."""
    z = torch.where(_filled(z), z, z[sampler.permutation()])
    walk = sampler.normal(sampler.length).cumsum(1) / sampler.length**0.5
    return torch.where(_filled(z), z, walk)


def unit_deviation(x: Tensor) -> Tensor:
    """Rows divided by their deviation (a constant row by its value); NaN stays NaN."""
    present = ~x.isnan()
    count = present.sum(1, keepdim=True).clamp(min=1)
    mean = torch.where(present, x, 0.0).double().sum(1, keepdim=True) / count
    spread = torch.where(present, x - mean, 0.0).square().sum(1, keepdim=True) / count
    deviation = spread.sqrt()
    constant_row = deviation <= 1e-6 * mean.abs()
    scale = torch.where(constant_row, mean.abs(), deviation).clamp(min=1e-30)
    return (x / scale).float()
