"""What the model may see of a training series: blind gaps, lost samples, irregular sampling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kssm.errors import InvalidInputError
from kssm.training.synthetic.sampler import Sampler, device_generator


@dataclass(frozen=True)
class VisibilityConfig:
    """Shares of rows and sizes in samples.

    Each of ``gap_probabilities`` may blind one gap a row. Long gaps teach forecasting far ahead:
    the model forecasts beyond its direct horizon by feeding itself missing samples. Of a slow row
    only every k-th sample is visible, as of a signal that is sampled at a k-th of its rate.
    """

    gap_probabilities: tuple[float, ...] = (0.45, 0.20)
    gap_min: int = 8
    gap_max: int = 900
    gap_max_share: float = 0.45  # of the series, for short ones
    long_gap_share: float = 0.5  # of the gaps: uniform up to gap_max instead of log-uniform
    long_gap_min: int = 32
    first_start: float = 0.1  # no gap starts before this part of the series
    dropout_probability: float = 0.12
    dropout_rates: tuple[float, float] = (0.005, 0.4)
    slow_probability: float = 0.0
    slow_most: int = 4  # k is 2 ... this

    def __post_init__(self) -> None:
        shares = (
            *self.gap_probabilities,
            *self.dropout_rates,
            self.gap_max_share,
            self.long_gap_share,
            self.first_start,
            self.dropout_probability,
            self.slow_probability,
        )
        if any(not 0.0 <= share <= 1.0 for share in shares) or self.dropout_rates[0] <= 0.0:
            raise InvalidInputError("visibility shares must lie in 0 ... 1", code="invalid_config")
        if not 1 <= self.gap_min <= self.gap_max:
            raise InvalidInputError("visibility gaps must be positive", code="invalid_config")
        if self.slow_most < 2:
            raise InvalidInputError("a slow row loses samples", code="invalid_config")


@torch.no_grad()
def visibility_mask(
    count: int,
    length: int,
    *,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    config: VisibilityConfig | None = None,
) -> Tensor:
    """Bool ``[count, length]``, true = visible; the first sample always is."""
    settings = config or VisibilityConfig()
    place = torch.device(device)
    sampler = Sampler(count, length, False, device_generator(generator, place), place)
    visible = ~_dropouts(sampler, settings)
    for probability in settings.gap_probabilities:
        visible &= ~_gap(sampler, settings, probability)
    if settings.slow_probability:
        visible &= ~_slow(sampler, settings)
    visible[:, 0] = True
    return visible


def _dropouts(sampler: Sampler, config: VisibilityConfig) -> Tensor:
    rate = sampler.log_uniform(*config.dropout_rates) * sampler.gate(config.dropout_probability)
    return sampler.uniform(0.0, 1.0, sampler.length) < rate


def _slow(sampler: Sampler, config: VisibilityConfig) -> Tensor:
    """What lies between the samples of slow rows."""
    factor = sampler.integers(2, config.slow_most + 1)
    phase = sampler.integers(0, config.slow_most)
    between = (sampler.time().long() + phase) % factor != 0
    return between & sampler.chance(config.slow_probability)


def _gap(sampler: Sampler, config: VisibilityConfig, probability: float) -> Tensor:
    longest = max(min(config.gap_max, int(sampler.length * config.gap_max_share)), 1)
    shortest = min(config.gap_min, longest)
    usual = sampler.log_uniform(shortest, longest + 1)
    wide = sampler.uniform(min(config.long_gap_min, longest), longest + 1)
    width = torch.where(sampler.chance(config.long_gap_share), wide, usual).floor()
    start = (sampler.uniform(config.first_start, 1.0) * sampler.length).floor()
    time = sampler.time()
    return (time >= start) & (time < start + width) & sampler.chance(probability)


@torch.no_grad()
def thin(
    count: int,
    length: int,
    *,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    keep_range: tuple[float, float] = (0.5, 0.95),
) -> Tensor:
    """Positions that irregular sampling keeps, int64 ``[count, kept]``, rising along each row.

    One keep share is drawn uniformly from ``keep_range`` for the call, so all rows keep the same
    number of samples; which ones, each row draws for itself. Position 0 is always kept.
    """
    low, high = keep_range
    if not 0.0 < low <= high <= 1.0 or count < 1 or length < 1:
        raise InvalidInputError(f"cannot thin with keep shares {keep_range}", code="invalid_config")
    place = torch.device(device)
    draw = torch.rand((), generator=generator, device=generator.device)
    kept = max(1, round(length * (low + (high - low) * float(draw))))
    source = device_generator(generator, place)
    order = torch.rand(count, length, generator=source, device=place)
    order[:, 0] = -1.0
    return order.topk(kept, dim=1, largest=False, sorted=False).indices.sort(dim=1).values
