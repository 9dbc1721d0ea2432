"""Time between samples: bridging of gaps, thinning of bursts. Pure functions on numpy arrays.

A sample that comes k intervals after the one before takes about k tokens: missing samples first,
then itself, all with equal steps near one interval. The model could take one step of k, but its
convolution and its shortest rhythms know time by tokens: with 30% of the samples of a daily series
lost, forecasts were 70% worse with long steps, 9% with missing samples (docs/forecaster.md).

Samples that come faster than the interval are thinned to about one an interval, for the same
reason: four times as many tokens with a quarter of the step each cost up to 42% (ibidem).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MAX_GAP = 1024
"""Longest gap that is bridged, in sample intervals; a longer one counts as this."""

MIN_STEP = 1e-6
"""Shortest step of one token: zero would make the token padding once rounded to float32."""


ALWAYS_READ = 0.67
"""Steps from about 2/3 on come closer to one interval than two of them would: always read."""


def thin(dt: Floats, elapsed: float = 0.0) -> tuple[NDArray[np.bool_], Floats, float]:
    """Which samples to read when they come faster than the interval.

    A sample is read unless the next one, as long after it as it is after the one before, would
    come closer to one interval after the last sample read. So with steps of 2/3 and more all are
    read, of exact fractions 1/k every k-th, and steps between samples read are 2/3 to 4/3 long.

    Args:
        dt: [samples] time since the previous sample in sample intervals.
        elapsed: time from the last sample read to the sample before these.

    Returns:
        read: [samples], the samples to read.
        steps: [read] time since the last sample read before.
        elapsed: time from the last sample read to the last of these.
    """
    if elapsed == 0.0 and (dt >= ALWAYS_READ).all():
        return np.ones(len(dt), dtype=np.bool_), dt, 0.0
    read = np.zeros(len(dt), dtype=np.bool_)
    steps: list[float] = []
    for index, step in enumerate(dt.tolist()):
        elapsed += step
        if elapsed >= 1.0 - step / 2.0 - 1e-9:
            read[index] = True
            steps.append(elapsed)
            elapsed = 0.0
    return read, np.array(steps), elapsed


def tokens_per_sample(dt: Floats, max_gap: float = MAX_GAP) -> NDArray[np.int64]:
    """Tokens each sample takes, its bridge included: [samples] int64, each at least 1."""
    gap = np.clip(dt, MIN_STEP, max_gap)
    return np.maximum(np.rint(gap), 1).astype(np.int64)


def bridge(values: Floats, dt: Floats, max_gap: float = MAX_GAP) -> tuple[Floats, Floats]:
    """Insert missing samples wherever more than about one interval has passed.

    ``values`` is [samples, channels], ``dt`` [samples] in sample intervals. Returns
    (values [tokens, channels], dt [tokens]), every sample at the end of its gap; steps are
    between 2/3 and 3/2 but where samples come closer together than that.
    """
    counts = tokens_per_sample(dt, max_gap)
    steps = np.repeat(np.clip(dt, MIN_STEP, max_gap) / counts, counts)
    bridged = np.full((len(steps), values.shape[1]), np.nan)
    bridged[np.cumsum(counts) - 1] = values
    return bridged, steps
