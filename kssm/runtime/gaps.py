"""Bridging of gaps in time: pure functions on numpy arrays.

The model's step is trained for steps of a few sample intervals. A longer gap is crossed in
several steps, all but the last with a missing sample, so that the state decays as it would have
with the samples lost on the way.
"""

from __future__ import annotations

import numpy as np

from kssm.runtime.contract import Floats, Slots

MAX_STEP = 4.0
"""Longest step of one token, in sample intervals."""

MIN_STEP = 1e-6
"""Shortest step of one token: zero would make the token padding once rounded to float32."""


def tokens_per_sample(dt: Floats, max_gap: float, max_step: float = MAX_STEP) -> Slots:
    """Tokens each sample takes, its bridge included: [samples] int64, each at least 1."""
    gap = np.clip(dt, MIN_STEP, max_gap)
    return np.maximum(np.ceil(gap / max_step), 1).astype(np.int64)


def bridge(
    values: Floats, dt: Floats, max_gap: float, max_step: float = MAX_STEP
) -> tuple[Floats, Floats]:
    """Insert missing tokens wherever the time since the previous sample exceeds ``max_step``.

    ``values`` is [samples, channels], ``dt`` [samples] in sample intervals. A gap longer than
    ``max_gap`` counts as ``max_gap``; one of k tokens is crossed in k equal steps. Returns
    (values [tokens, channels], dt [tokens]), every sample at the end of its gap.
    """
    counts = tokens_per_sample(dt, max_gap, max_step)
    steps = np.repeat(np.clip(dt, MIN_STEP, max_gap) / counts, counts)
    bridged = np.full((len(steps), values.shape[1]), np.nan)
    bridged[np.cumsum(counts) - 1] = values
    return bridged, steps
