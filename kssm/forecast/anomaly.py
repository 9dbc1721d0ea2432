"""Anomaly scores: how unlikely a sample was under the forecast made before it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_SCORE = 12.0


def score_from_tail(tail: NDArray[np.float64]) -> NDArray[np.float64]:
    """-log10 of two-sided tail probabilities, capped at 12; NaN (no score) stays NaN.

    A score of 2 is a sample that only 1 in 100 goes beyond, 3 one in 1000, and so on.
    """
    return -np.log10(np.clip(tail, 10.0**-MAX_SCORE, 1.0))
