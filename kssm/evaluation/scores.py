"""Scores of quantile forecasts, alone and relative to the seasonal naive forecast.

Sources: Hyndman and Koehler 2006 (MASE, scaled by the seasonal naive error of each window's own
past); Park et al. 2022 (weighted quantile loss, an estimate of the CRPS); Aksu et al. 2024
(GIFT-Eval: which windows count, Gaussian spread of the seasonal naive forecast, geometric means).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kssm.evaluation.tasks import Floats, Task
from kssm.forecast.distribution import LEVELS, MEDIAN

_NORMAL_UPPER = (0.2533471031357997, 0.5244005127080407, 0.8416212335729142, 1.2815515655446004)
NORMAL_QUANTILES = np.array([-z for z in reversed(_NORMAL_UPPER)] + [0.0, *_NORMAL_UPPER])


class Scores(NamedTuple):
    """mase: mean absolute scaled error of the median; crps: mean weighted quantile loss, the
    summed pinball loss (times 2) over the summed absolute target, averaged over the levels.
    NaN when there is nothing to score."""

    mase: float
    crps: float

    def relative_to(self, other: Scores) -> Scores:
        """Each score divided by the other's; NaN where that is zero."""
        pairs = zip(self, other, strict=True)
        return Scores(*(ours / theirs if theirs else math.nan for ours, theirs in pairs))


def score(task: Task, quantiles: NDArray[np.float32]) -> Scores:
    """Score quantiles [n_windows, 9, prediction_length] against the task's windows."""
    truth = task.targets()
    known = np.isfinite(truth)
    weight = np.abs(truth[known]).sum()
    loss = quantile_loss(truth, quantiles).sum()
    scale = np.asarray([_seasonal_error(past, task.season) for past in task.contexts()])
    usable = known & (scale > 0)[:, None]
    error = np.abs(truth - quantiles[:, MEDIAN])
    scaled = (error / np.where(scale > 0, scale, 1.0)[:, None])[usable]
    return Scores(
        mase=float(scaled.mean()) if scaled.size else math.nan,
        crps=float(loss / weight) if weight else math.nan,
    )


def quantile_loss(truth: Floats, quantiles: NDArray[np.float32]) -> Floats:
    """Twice the pinball loss of each target, mean over the levels; 0 where it is unknown.

    truth [n, horizon], NaN = unknown; quantiles [n, 9, horizon]; returns [n, horizon].
    """
    levels = np.asarray(LEVELS)[:, None]
    error = np.nan_to_num(truth)[:, None] - quantiles.astype(np.float64)
    pinball = np.maximum(levels * error, (levels - 1.0) * error)
    return np.where(np.isfinite(truth), 2.0 * pinball.mean(axis=1), 0.0)


def seasonal_naive(task: Task) -> NDArray[np.float32]:
    """The last season repeated, with Gaussian spread [n_windows, 9, prediction_length].

    The spread is the root mean square seasonal difference of the window's past, growing with the
    square root of the seasons ahead. Missing samples repeat the last observed one.
    """
    return np.stack([_naive(past, task) for past in task.contexts()])


def geometric_mean(values: Iterable[float]) -> float:
    """Geometric mean of positive numbers (those below 1e-12 count as 1e-12)."""
    logs = [math.log(max(value, 1e-12)) for value in values]
    return math.exp(sum(logs) / len(logs))


def _naive(raw: NDArray[np.float32], task: Task) -> NDArray[np.float32]:
    past = _filled(raw).astype(np.float64)
    lag = task.season if len(past) > task.season else 1
    ahead = np.arange(task.prediction_length)
    residuals = past[lag:] - past[:-lag]
    spread = math.sqrt(float(np.mean(residuals**2))) if len(residuals) else 0.0
    centre = past[len(past) - lag + ahead % lag]
    growth = spread * np.sqrt(ahead // lag + 1)
    return (centre + NORMAL_QUANTILES[:, None] * growth).astype(np.float32)


def _filled(past: NDArray[np.float32]) -> NDArray[np.float32]:
    """Missing samples replaced by the last observed one, at the start by the first observed."""
    seen = np.isfinite(past)
    if not seen.any():
        return np.zeros_like(past)
    last = np.maximum.accumulate(np.where(seen, np.arange(len(past)), -1))
    return past[np.where(last < 0, int(np.argmax(seen)), last)]


def _seasonal_error(past: NDArray[np.float32], season: int) -> float:
    """Mean absolute seasonal difference of the observed pairs, 0 where there is none."""
    lag = season if season <= len(past) else 1
    gaps = np.abs(past[lag:].astype(np.float64) - past[:-lag])
    seen = gaps[np.isfinite(gaps)]
    return float(seen.mean()) if seen.size else 0.0
