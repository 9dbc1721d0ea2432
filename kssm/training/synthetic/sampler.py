"""Row-wise random draws: every synthetic family takes its randomness from a ``Sampler``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

SMALL_GROUP = 4  # fewer rows an option than this: build every option and choose row by row

Option = tuple[float, Callable[..., Tensor]]


@dataclass(frozen=True)
class Sampler:
    """Draws for ``rows`` independent series of ``length`` samples.

    Every draw is ``[rows, columns]``, so a draw of one column broadcasts over time. ``short``
    selects the regime of few-hundred-sample series. The order of calls fixes the numbers: the
    same generator state gives the same series.
    """

    rows: int
    length: int
    short: bool
    generator: torch.Generator
    device: torch.device

    def _empty(self, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(self.rows, columns, dtype=dtype, device=self.device)

    def uniform(self, low: float, high: float, columns: int = 1) -> Tensor:
        """Uniform on [low, high)."""
        return self._empty(columns).uniform_(low, high, generator=self.generator)

    def log_uniform(self, low: float, high: float, columns: int = 1) -> Tensor:
        """Uniform in the logarithm on [low, high), both positive."""
        return self.uniform(math.log(low), math.log(high), columns).exp_()

    def normal(self, columns: int = 1) -> Tensor:
        """Standard normal."""
        return torch.randn(self.rows, columns, generator=self.generator, device=self.device)

    def chance(self, probability: float, columns: int = 1) -> Tensor:
        """Bool, true with ``probability``."""
        empty = self._empty(columns, torch.bool)
        return empty.bernoulli_(probability, generator=self.generator)

    def gate(self, probability: float, columns: int = 1) -> Tensor:
        """The same as float: 1 with ``probability``, else 0."""
        return self._empty(columns).bernoulli_(probability, generator=self.generator)

    def integers(self, low: int, high: int, columns: int = 1) -> Tensor:
        """Int64, uniform on low ... high - 1."""
        shape = (self.rows, columns)
        return torch.randint(low, high, shape, generator=self.generator, device=self.device)

    def choice(self, weights: Sequence[float]) -> Tensor:
        """Int64 ``[rows]``: an index drawn in proportion to ``weights``."""
        total = math.fsum(weights)
        edges, reached = [], 0.0
        for weight in weights[:-1]:
            reached += weight / total
            edges.append(reached)
        bounds = constant(edges, self.device)
        return torch.bucketize(self.uniform(0.0, 1.0).squeeze(1), bounds, right=True)

    def permutation(self) -> Tensor:
        """A random order of the rows, int64 ``[rows]``."""
        return torch.randperm(self.rows, generator=self.generator, device=self.device)

    def time(self) -> Tensor:
        """Sample positions 0, 1, ... as float ``[1, length]``."""
        return torch.arange(self.length, device=self.device, dtype=torch.float32)[None]

    def resized(self, rows: int) -> Sampler:
        """The same stream of randomness for another number of rows."""
        return replace(self, rows=rows)


def constant(values: Sequence[float] | Sequence[Sequence[float]], device: torch.device) -> Tensor:
    """Host numbers as a float32 tensor, without making a GPU's queue wait for the copy."""
    tensor = torch.tensor(values, dtype=torch.float32)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def device_generator(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """``generator`` itself if it draws on ``device``, else one there that is seeded from it."""
    if generator.device.type == device.type:
        return generator
    seed = torch.randint(2**62, (1,), generator=generator, device=generator.device)
    return torch.Generator(device=device).manual_seed(int(seed))


def apportion(rows: int, weights: Sequence[float]) -> list[int]:
    """Splits ``rows`` in proportion to ``weights`` by largest remainder; the sum is exact."""
    total = math.fsum(weights)
    exact = [rows * weight / total for weight in weights]
    counts = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: counts[i] - exact[i])
    for index in by_remainder[: rows - sum(counts)]:
        counts[index] += 1
    return counts


def mixture(sampler: Sampler, options: Sequence[Option], *inputs: Tensor) -> Tensor:
    """Gives every row to one of ``options`` at random, in proportion to their weights.

    An option is ``(weight, build)`` and ``build(sampler, *inputs)`` returns ``[rows, ...]``; it
    sees its own rows of ``inputs`` only. Shares are exact, so nothing is computed and thrown
    away, except in groups too small for that, where every row draws its option.
    """
    weights = [weight for weight, _ in options]
    if sampler.rows < SMALL_GROUP * len(options):
        return _drawn_mixture(sampler, options, weights, inputs)
    order = sampler.permutation()
    parts: list[Tensor] = []
    start = 0
    for rows, (_, build) in zip(apportion(sampler.rows, weights), options, strict=True):
        if rows:
            index = order[start : start + rows]
            parts.append(build(sampler.resized(rows), *(x[index] for x in inputs)))
            start += rows
    joined = torch.cat(parts)
    return torch.empty_like(joined).index_copy_(0, order, joined)


def _drawn_mixture(
    sampler: Sampler, options: Sequence[Option], weights: Sequence[float], inputs: Sequence[Tensor]
) -> Tensor:
    stacked = torch.stack([build(sampler, *inputs) for weight, build in options if weight > 0])
    chosen = sampler.choice([weight for weight in weights if weight > 0])
    return stacked[chosen, torch.arange(sampler.rows, device=sampler.device)]
