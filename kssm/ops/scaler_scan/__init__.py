"""The causal scaler's recursion: running statistics of each row, robust to spikes, in float64.

One update a sample. A visible sample x updates an exponentially weighted mean and variance
(West 1979; cumulative until ``memory`` samples were seen), a difference scale and a fast mean.
Innovations are winsorised at ``CLIP`` scales once ``WARM_UP`` samples were seen, so that one wild
sample moves the scale by a bounded factor while a lasting change is followed within some tens of
samples. A missing sample (NaN) only lets time pass. Nothing ever looks ahead.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

MEMORY: Final = 512.0
FAST_MEMORY: Final = 16.0
CLIP: Final = 16.0
WARM_UP: Final = 8.0
"""Visible samples before a row's scale is trusted."""

MAX_ABSOLUTE: Final = 1e30
"""Largest magnitude that counts as a sample: anything else is missing."""

FIELDS: Final = ("count", "mean", "variance", "difference", "fast_mean", "last", "gap")
"""Order of the float64 statistics in the last dimension of the scaler's state."""


def _update(xp: Any, stats: tuple[Any, ...], x: Any, dt: Any) -> tuple[Any, ...]:
    """The recursion for one sample a row; ``xp`` is numpy or torch, arrays are [rows] float64.

    ``variance`` and ``difference`` are squared scales; ``gap`` is the time since the last
    visible sample in nominal intervals.
    """
    count, mean, variance, difference, fast_mean, last, gap = stats
    seen = xp.abs(x) <= MAX_ABSOLUTE
    first = count == 0
    x = xp.where(seen, x, last)
    mean_0 = xp.where(first, x, mean)
    last_0 = xp.where(first, x, last)
    fast_0 = xp.where(first, x, fast_mean)
    new_count = count + 1.0
    share = 1.0 / xp.where(new_count < MEMORY, new_count, xp.full_like(count, MEMORY))
    fast = 1.0 / xp.where(new_count < FAST_MEMORY, new_count, xp.full_like(count, FAST_MEMORY))
    pairs = xp.where(count < MEMORY, count, xp.full_like(count, MEMORY))
    pair_share = 1.0 / xp.where(pairs < 1.0, xp.ones_like(count), pairs)
    warm = count >= WARM_UP
    deviation = _winsorise(xp, x - mean_0, variance, warm)
    step = _winsorise(xp, x - last_0, difference, warm)
    rush = _winsorise(xp, x - fast_0, variance, warm)
    new_variance = (1.0 - share) * (variance + share * deviation * deviation)
    new_difference = difference + pair_share * (step * step - difference)
    return (
        xp.where(seen, new_count, count),
        xp.where(seen, mean_0 + share * deviation, mean),
        xp.where(seen, new_variance, variance),
        xp.where(seen & ~first, new_difference, difference),
        xp.where(seen, fast_0 + fast * rush, fast_mean),
        xp.where(seen, x, last),
        xp.where(seen, xp.zeros_like(gap), gap + dt),
    )


def _winsorise(xp: Any, innovation: Any, variance: Any, warm: Any) -> Any:
    """Clip to CLIP scales where a scale is known; a row that was constant so far is not clipped."""
    bound = CLIP * xp.sqrt(variance)
    clipped = xp.where(innovation > bound, bound, xp.where(innovation < -bound, -bound, innovation))
    return xp.where(warm & (variance > 0), clipped, innovation)


def update(stats: Tensor, values: Tensor, dt: Tensor) -> Tensor:
    """Statistics [N, 7] after one more sample a row ([N] float64, NaN = missing)."""
    if stats.is_cuda or torch.compiler.is_exporting():
        return torch.stack(_update(torch, stats.unbind(-1), values, dt), dim=-1)
    with np.errstate(all="ignore"):  # a corrupted row is found by its forecast
        new = _update(np, tuple(stats.numpy().T), values.numpy(), dt.numpy())
    return torch.from_numpy(np.stack(new, axis=-1))


def scan(
    stats: Tensor, values: Tensor, dt: Tensor, lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Statistics after each sample [B, T, 7], and after the last valid one [B, 7].

    Args:
        stats: [B, 7] float64 to continue from.
        values: [B, T] float64, NaN = missing.
        dt: [B, T] float64 time since the previous sample in nominal intervals.
        lengths: [B] number of valid samples, None = all.
    """
    if values.is_cuda:
        from kssm.ops.scaler_scan.kernel import scan_cuda

        path = scan_cuda(stats, values, dt)
    else:
        path = _scan_numpy(stats, values, dt)
    if lengths is None:
        return path, path[:, -1]
    whole = torch.cat([stats.unsqueeze(1), path], dim=1)
    index = lengths[:, None, None].expand(-1, 1, stats.shape[-1])
    return path, whole.gather(1, index).squeeze(1)


def _scan_numpy(stats: Tensor, values: Tensor, dt: Tensor) -> Tensor:
    """The recursion in numpy: a fraction of torch's cost an operation on small arrays."""
    current = tuple(np.ascontiguousarray(field) for field in stats.numpy().T)
    samples = np.ascontiguousarray(values.numpy().T)
    steps = np.ascontiguousarray(dt.numpy().T)
    path = np.empty((len(samples), len(FIELDS), stats.shape[0]))
    with np.errstate(all="ignore"):
        for t, (x, step) in enumerate(zip(samples, steps, strict=True)):
            current = _update(np, current, x, step)
            path[t] = current
    return torch.from_numpy(path).permute(2, 0, 1)
