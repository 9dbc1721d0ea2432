"""Training batches: recordings on the device, varied at random, and synthetic sounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from experiments.audio.corpora import Floats
from kssm.training.synthetic.sampler import Sampler
from kssm.training.synthetic.signals import coloured_noise
from kssm.training.synthetic.voices import resonators, sounds

_TAPS: Final = 16
_PAUSE: Final = (400, 1600)


@dataclass(frozen=True)
class Pool:
    """Recordings one after another with pauses between, all of about one loudness."""

    samples: Tensor

    @classmethod
    def of(cls, recordings: Sequence[Floats], seed: int, device: torch.device) -> Pool:
        """Recordings in their order (so neighbours share a speaker), as a ring."""
        rng = np.random.default_rng(seed)
        parts: list[Floats] = []
        for x in recordings:
            level = float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) + 1e-9
            parts += [x / level, np.zeros(int(rng.integers(*_PAUSE)), np.float32)]
        return cls(torch.from_numpy(np.concatenate(parts)).to(device))


@dataclass(frozen=True)
class Mixture:
    """Rows of a batch by source.

    Attributes:
        pools: recordings and their share of the rows.
        synthetic: share of synthetic sounds.
    """

    pools: Sequence[tuple[float, Pool]]
    synthetic: float = 0.25

    def draw(self, rows: int, length: int, generator: torch.Generator) -> Tensor:
        """Varied sounds [rows, length], float32, of levels from 1e-3 to 1."""
        device = self.pools[0][1].samples.device
        made = round(rows * self.synthetic)
        counts = _split(rows - made, [share for share, _ in self.pools])
        parts = [sounds(_sampler(made, length, generator, device))] if made else []
        for count, (_, pool) in zip(counts, self.pools, strict=True):
            if count:
                parts.append(_crops(_sampler(count, length, generator, device), pool))
        return _vary(_sampler(rows, length, generator, device), torch.cat(parts))


def _sampler(rows: int, length: int, generator: torch.Generator, device: torch.device) -> Sampler:
    return Sampler(rows, length, False, generator, device)


def _split(rows: int, shares: Sequence[float]) -> list[int]:
    edges = np.round(np.cumsum([0.0, *shares]) / sum(shares) * rows).astype(int)
    return [int(n) for n in np.diff(edges)]


def _crops(sampler: Sampler, pool: Pool) -> Tensor:
    """Stretches from anywhere, half of them played faster or slower (pitch moves along)."""
    size = len(pool.samples)
    rate = torch.exp(sampler.uniform(-0.25, 0.25) * sampler.gate(0.5)).double()
    rate = rate * (1.0 - 2.0 * sampler.gate(0.1).double())
    start = (sampler.uniform(0.0, 1.0).double() * size).floor()
    place = start + rate * torch.arange(sampler.length, device=sampler.device)
    whole = place.floor()
    part = (place - whole).unsqueeze(-1)
    tap = torch.arange(_TAPS, device=sampler.device) - (_TAPS // 2 - 1)
    near = (whole.unsqueeze(-1) + tap).remainder(size).long()
    distance = tap - part
    kernel = torch.sinc(distance) * torch.cos(distance * (torch.pi / (_TAPS + 2))).square()
    return (pool.samples[near] * kernel.float()).sum(-1)


def _vary(sampler: Sampler, x: Tensor) -> Tensor:
    """Filters, a second voice, noise, clipping, coarse codes, sign and level."""
    x = torch.where(sampler.chance(0.6), _filtered(sampler, x), x)
    x = x / (x.square().mean(1, keepdim=True).sqrt() + 1e-4)
    x = x + sampler.gate(0.08) * sampler.uniform(0.1, 0.8) * x[sampler.permutation()]
    noise = torch.where(
        sampler.chance(0.5), coloured_noise(sampler), sampler.normal(sampler.length)
    )
    x = x + sampler.log_uniform(2e-4, 0.05) * noise
    x = torch.where(sampler.chance(0.03), x.clamp(-2.0, 2.0), x)
    x = torch.where(sampler.chance(0.07), (x * 64.0).round() / 64.0, x)
    return x * sampler.log_uniform(1e-3, 1.0) * (1.0 - 2.0 * sampler.gate(0.5))


def _filtered(sampler: Sampler, x: Tensor) -> Tensor:
    size = 2 * sampler.length
    return torch.fft.irfft(torch.fft.rfft(x, size) * resonators(sampler, 0.7), size)[
        :, : sampler.length
    ]
