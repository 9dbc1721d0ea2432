"""One signal, sampled in several ways: (values, dt) of the samples a session would send.

``dt`` is the time since the previous sample in intervals of the complete series, whose samples lie
at the times 0, 1, ... n - 1; NaN = missing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kssm.forecast.gaps import bridge, thin

Floats = NDArray[np.float64]


class Samples(NamedTuple):
    """values [k]; dt [k]; late: time from the last sample to the last of the complete series."""

    values: Floats
    dt: Floats
    late: int = 0


def complete(series: Floats) -> Samples:
    return Samples(series, np.ones(len(series)))


def dropped(series: Floats, share: float, generator: np.random.Generator) -> Samples:
    """A random ``share`` of the samples (the first stays) was never sent."""
    kept = generator.random(len(series)) >= share
    kept[0] = True
    times = np.flatnonzero(kept)
    dt = np.diff(times, prepend=times[0] - 1).astype(np.float64)
    return Samples(series[kept], dt, len(series) - 1 - int(times[-1]))


def faster(series: Floats, factor: int) -> Samples:
    """``factor`` times the rate, between the samples linearly interpolated."""
    last = len(series) - 1
    times = np.arange(last * factor + 1) / factor
    before = np.floor(times).astype(np.int64)
    share = times - before
    after = np.minimum(before + 1, last)
    between = series[before] * (1.0 - share) + series[after] * share
    values = np.where(share > 0.0, between, series[before])
    return Samples(values, np.full(len(times), 1.0 / factor))


def slower(series: Floats, factor: int) -> Samples:
    """Every ``factor``-th sample; the last of the series is one of them."""
    kept = series[(len(series) - 1) % factor :: factor]
    return Samples(kept, np.full(len(kept), float(factor)))


def tokens(samples: Samples, *, thinned: bool = True) -> tuple[Floats, Floats]:
    """What the model reads of the samples, as a session makes it: (values, dt) [tokens].

    Without ``thinned`` every sample is read, however soon it came.
    """
    values, dt = samples.values, samples.dt.copy()
    dt[0] = 1.0
    if thinned:
        read, dt, _ = thin(dt)
        values = values[read]
    bridged, steps = bridge(values[:, None], dt)
    return bridged[:, 0], steps
