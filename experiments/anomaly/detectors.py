"""Detectors that the forecaster's scores are compared with; all look back only."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEAST = 8
"""Samples in a moving window before it says anything."""


def static_threshold(values: Floats, learnt: int) -> Floats:
    """Distance from the median of the first ``learnt`` samples: any threshold on it is a band."""
    return np.abs(values - np.nanmedian(values[:learnt]))


def moving_z(values: Floats, window: int) -> Floats:
    """Distance from the mean of the ``window`` samples before, in their standard deviations."""
    past = pd.Series(values).rolling(window, min_periods=LEAST)
    return _scaled(values, _before(past.mean()), _before(past.std()))


def moving_mad(values: Floats, window: int) -> Floats:
    """Distance from the moving median in moving median absolute deviations (robust z-score)."""
    series = pd.Series(values)
    centre = _before(series.rolling(window, min_periods=LEAST).median())
    away = pd.Series(np.abs(values - centre)).rolling(window, min_periods=LEAST)
    floor = 1e-3 * _before(series.expanding(LEAST).std())
    return _scaled(values, centre, np.maximum(1.4826 * _before(away.median()), floor))


def smoothed(scores: Floats, memory: int) -> Floats:
    """Exponentially weighted mean of the scores so far, about ``memory`` samples long."""
    return np.asarray(pd.Series(scores).ewm(alpha=1.0 / memory, adjust=False).mean())


def _before(statistic: object) -> Floats:
    """A statistic of each sample's past, the sample itself left out."""
    column = np.asarray(statistic, dtype=np.float64)
    return np.concatenate([[np.nan], column[:-1]])


def _scaled(values: Floats, centre: Floats, spread: Floats) -> Floats:
    floor = 1e-9 + 1e-6 * np.abs(centre)
    return np.nan_to_num(np.abs(values - centre) / (spread + floor))
