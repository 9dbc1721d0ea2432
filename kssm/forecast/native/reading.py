"""Forecasts read from the rows' states as compiled code, for rows of one resolution or several."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling

from kssm.forecast.distribution import between
from kssm.forecast.native import library
from kssm.forecast.native.calls import share

Sources = Sequence[tuple[Tensor, Tensor]]


class Contest(NamedTuple):
    """What joins a row's resolutions: samples so far [B, 1], the contest's sums [B, F, 2, 3]."""

    factors: tuple[int, ...]
    clock: Tensor
    sums: Tensor


def read_quantiles(
    sources: Sources,
    horizon: int,
    levels: tuple[float, ...],
    direct: int,
    contest: Contest | None = None,
    slots: Tensor | None = None,
) -> Tensor | None:
    """Quantiles of the next samples [B, horizon, len(levels)], float64, in the rows' own units.

    Args:
        sources: of the row, then of each copy, normalised quantiles [B, points, 9] that reach the
            horizon and statistics [B, 7].
        direct: samples that the head reaches.
        contest: of rows with copies.
        slots: [B] int64, the rows to read of those given; None = all of them.

    Returns None where the compiled code cannot do it.
    """
    compiled = library.load()
    if compiled is None or not all(can_read(blocks) for blocks, _ in sources):
        return None
    kept = [(blocks.contiguous(), stats.contiguous()) for blocks, stats in sources]
    rows, copies = len(kept[0][0]) if slots is None else len(slots), len(kept) - 1
    quantiles = torch.empty(rows, horizon, len(levels), dtype=torch.float64)
    parts = [library.Source(b.shape[1], b.data_ptr(), s.data_ptr()) for b, s in kept]
    joined = () if contest is None else (contest.clock.contiguous(), contest.sums.contiguous())
    question = library.Question(
        rows,
        horizon,
        len(levels),
        direct,
        copies,
        (library.Source * len(parts))(*parts),
        (ctypes.c_int64 * copies)(*(() if contest is None else contest.factors)),
        None if slots is None else slots.data_ptr(),
        *([tensor.data_ptr() for tensor in joined] or (None, None)),
        (library.Level * len(levels))(*map(_level, levels)),
        quantiles.data_ptr(),
    )
    share(lambda some: compiled.forecast(question, some), torch.arange(rows + 1))
    return quantiles


def can_read(blocks: Tensor) -> bool:
    """Whether the compiled code reads such forecasts, where there is any."""
    return blocks.is_cpu and blocks.dtype is torch.float32 and not is_compiling()


@functools.lru_cache(maxsize=256)
def _level(level: float) -> library.Level:
    below, above, weight = between(level)
    return library.Level(below, -1 if above is None else above, weight)
