"""Thinned copies of a row: every k-th sample, and their forecasts back on the row's own grid.

A thinned copy keeps the last visible sample of each run of k samples, so that its samples are
samples of the row: unlike a mean over the run, their spread is the row's own.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from kssm.forecast.scaler import is_visible

ABSENT = 2e30
"""What a missing sample is kept as: finite, and outside the range of samples."""


def last_visible(runs: Tensor) -> Tensor:
    """Last visible value of each run [..., k] -> [...], NaN where a run has none."""
    position = torch.arange(1, runs.shape[-1] + 1, device=runs.device)
    latest = torch.where(is_visible(runs), position, 0).amax(-1)
    values = runs.gather(-1, (latest - 1).clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return torch.where(latest > 0, values, torch.nan)


def mean_step(steps: Tensor) -> Tensor:
    """Mean over the last dimension, added up in order: the same bits whatever the shape."""
    return functools.reduce(torch.add, steps.unbind(-1)) / steps.shape[-1]


def shifted(sequence: Tensor, start: Tensor, length: int) -> Tensor:
    """Each row of ``sequence`` [B, T, ...] from its own ``start`` [B] on: [B, length, ...].

    Past a row's end its last entry repeats.
    """
    steps = torch.arange(length, device=sequence.device)
    index = (start.unsqueeze(1) + steps).clamp_max(sequence.shape[1] - 1)
    return sequence[torch.arange(len(start), device=start.device).unsqueeze(1), index]


def joined(held: Tensor, phase: Tensor, new: Tensor, ends: Tensor, blocks: int) -> Tensor:
    """The samples of the row's unfinished block, then the new ones, cut into blocks.

    Args:
        held: [B, M] the unfinished block, whose first ``phase`` [B] samples are there.
        new: [B, T] new samples, of which the first ``ends`` [B] are valid.
        blocks: blocks to return.

    Returns:
        [B, blocks, M]; zeros after the last valid sample.
    """
    rows, size = held.shape
    position = torch.arange(blocks * size, device=held.device).expand(rows, -1)
    index = position - phase.unsqueeze(1)
    fresh = new.gather(1, index.clamp(0, new.shape[1] - 1))
    kept = held.gather(1, position.clamp_max(size - 1))
    valid = index < ends.unsqueeze(1)
    flat = torch.where(index < 0, kept, torch.where(valid, fresh, 0.0))
    return flat.unflatten(1, (blocks, size))


def coarse_length(horizon: int, factor: int) -> int:
    """Coarse samples that reach ``horizon`` samples ahead, whatever the row's age."""
    return -(-(horizon + factor - 1) // factor)


def on_own_grid(coarse: Tensor, factor: int, age: Tensor, anchor: Tensor, horizon: int) -> Tensor:
    """Forecasts of every ``factor``-th sample, interpolated to every sample ahead.

    Args:
        coarse: [..., C, Q] quantiles, the first one ``factor - age`` samples ahead.
        age: [...] samples since the last coarse sample, below ``factor``.
        anchor: [...] the row's last value: where interpolation starts, now.
        horizon: samples ahead.

    Returns:
        [..., horizon, Q].
    """
    right, share = _places(factor, horizon, coarse.device)
    right, share = right[age], share[age].unsqueeze(-1)
    start = anchor[..., None, None].expand(*anchor.shape, 1, coarse.shape[-1])
    points = torch.cat([start, coarse], dim=-2)
    return torch.lerp(_pick(points, right), _pick(points, right + 1), share)


@functools.lru_cache(maxsize=256)
def _places(factor: int, horizon: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For every age [factor, horizon]: the point before each sample ahead (0 is now), and how far
    the sample lies from it to the next."""
    age = torch.arange(factor, device=device).unsqueeze(1)
    lead = torch.arange(1, horizon + 1, device=device) + age
    right = (lead + factor - 1) // factor - 1
    left_at = torch.maximum(right * factor, age)
    return right, (lead - left_at) / ((right + 1) * factor - left_at).double()


def _pick(points: Tensor, index: Tensor) -> Tensor:
    return points.gather(-2, index.unsqueeze(-1).expand(*index.shape, points.shape[-1]))
