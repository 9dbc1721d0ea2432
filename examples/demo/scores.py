"""How good forecasts were, once the truth is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kssm_client import Forecast

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Score:
    """Mean errors of one channel over all forecasts and steps ahead whose truth is known.

    ``loss`` is twice the mean pinball loss over the quantile levels, an estimate of the CRPS.
    For a point forecast it is the absolute error, so the naive forecasts need only one number.
    ``coverage`` is the share of samples inside the 80% interval.
    """

    forecasts: int
    error_at_end: float
    loss: float
    naive_error: float
    naive_error_at_end: float
    seasonal_error: float | None
    coverage: float

    def skill(self, baseline: float | None) -> float | None:
        """1 - loss / baseline: 1 is perfect, 0 no better; None where the baseline is."""
        return None if not baseline else 1.0 - self.loss / baseline


class Track:
    """One session's samples and forecasts: ``history`` [samples, channels] was its prompt.

    The first ``warm_up`` forecasts are not scored.
    """

    def __init__(
        self, history: FloatArray, horizon: int, *, season: int | None = None, warm_up: int = 0
    ) -> None:
        self.horizon = horizon
        self.forecasts: list[Forecast] = []
        self._season = season
        self.warm_up = warm_up
        self._past = len(history)
        self._samples: list[FloatArray] = list(history)

    def add(self, sample: FloatArray, forecast: Forecast) -> None:
        """Take a sample [channels] and the forecast made after it."""
        self._samples.append(sample)
        self.forecasts.append(forecast)

    @property
    def samples(self) -> FloatArray:
        """All samples so far, [samples, channels]."""
        return np.array(self._samples)

    def lately(self, channel: int, count: int) -> tuple[FloatArray, FloatArray]:
        """The newest samples, and the median forecast ``horizon`` samples before each."""
        truth = self.samples[-count:, channel]
        made = np.full(len(truth), np.nan)
        for back in range(min(count, len(truth))):
            origin = len(self.forecasts) - 1 - back - self.horizon
            if origin >= 0:
                made[-1 - back] = self.forecasts[origin].median[channel, -1]
        return truth, made

    def score(self, channel: int) -> Score | None:
        """The channel's score; None before any truth is known."""
        origins = np.arange(self.warm_up, len(self.forecasts) - 1)
        if not len(origins):
            return None
        series = np.concatenate([self.samples[:, channel], np.full(self.horizon, np.nan)])
        now = self._past + origins
        ahead = now[:, None] + np.arange(1, self.horizon + 1)
        truth = series[ahead]
        last = _last_known(series)[now][:, None]
        known = np.isfinite(truth) & np.isfinite(last)
        seasonal = None
        if self._season is not None:
            seasonal = np.abs(_last_known(series)[ahead - self._season] - truth)
        return self._scored(channel, origins, truth, np.abs(last - truth), seasonal, known)

    def _scored(
        self,
        channel: int,
        origins: npt.NDArray[np.int64],
        truth: FloatArray,
        naive: FloatArray,
        seasonal: FloatArray | None,
        known: npt.NDArray[np.bool_],
    ) -> Score | None:
        if not known.any():
            return None
        made = [self.forecasts[origin] for origin in origins]
        quantiles = np.stack([forecast.values[channel] for forecast in made])  # [n, Q, H]
        median = np.stack([forecast.median[channel] for forecast in made])
        low, high = (quantiles[:, _level(made[0], level)] for level in (0.1, 0.9))
        levels = np.array(made[0].levels)[:, None]
        gap = truth[:, None, :] - quantiles
        loss = 2.0 * np.maximum(levels * gap, (levels - 1.0) * gap).mean(axis=1)
        error = np.abs(median - truth)
        end = known[:, -1]
        return Score(
            forecasts=int(known.any(axis=1).sum()),
            error_at_end=_mean(error[end, -1]),
            loss=float(loss[known].mean()),
            naive_error=float(naive[known].mean()),
            naive_error_at_end=_mean(naive[end, -1]),
            seasonal_error=None if seasonal is None else _mean(seasonal[known]),
            coverage=float(((low <= truth) & (truth <= high))[known].mean()),
        )


def _last_known(series: FloatArray) -> FloatArray:
    """Each value, or where it is missing the one before it."""
    positions = np.where(np.isfinite(series), np.arange(len(series)), 0)
    return series[np.maximum.accumulate(positions)]


def _level(forecast: Forecast, level: float) -> int:
    return int(np.argmin(np.abs(np.array(forecast.levels) - level)))


def _mean(values: FloatArray) -> float:
    return float(values.mean()) if values.size else float("nan")
