"""Forecasting evaluation tasks: flat ``.npz`` files with rolling test windows.

A task file holds ``values`` (flat float32, NaN = missing), ``offsets`` (series i is
``values[offsets[i]:offsets[i + 1]]``), ``prediction_length``, ``windows`` and optionally ``season``
and ``name``. The last ``windows * prediction_length`` values of every series are its test windows,
oldest first; windows are ordered series by series.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kssm.errors import InvalidInputError
from kssm.forecast.batch import batches, consume
from kssm.forecast.distribution import LEVELS
from kssm.forecast.forecaster import SignalForecaster
from kssm.models import State

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Task:
    """One evaluation task."""

    name: str
    prediction_length: int
    windows: int
    season: int
    values: NDArray[np.float32]
    offsets: NDArray[np.int64]

    def series(self) -> Iterator[NDArray[np.float32]]:
        for start, stop in zip(self.offsets[:-1], self.offsets[1:], strict=True):
            yield self.values[start:stop]

    def contexts(self) -> list[NDArray[np.float32]]:
        """What is known before each window, in window order."""
        return [series[:cut] for series in self.series() for cut in self.cuts(len(series))]

    def targets(self) -> Floats:
        """[n_windows, prediction_length], NaN = unknown."""
        horizon = self.prediction_length
        cut = [s[c : c + horizon] for s in self.series() for c in self.cuts(len(s))]
        return np.stack(cut).astype(np.float64)

    def cuts(self, length: int) -> list[int]:
        """Length of the history before each window of a series, oldest window first."""
        first = length - self.windows * self.prediction_length
        return [first + i * self.prediction_length for i in range(self.windows)]


def load_task(path: str | Path) -> Task:
    """Read a task file; raises ``invalid_task`` naming what is wrong with it."""
    try:
        with np.load(path, allow_pickle=False) as data:
            task = Task(
                name=str(data["name"]) if "name" in data else Path(path).stem,
                prediction_length=int(data["prediction_length"]),
                windows=int(data["windows"]),
                season=int(data["season"]) if "season" in data else 1,
                values=np.asarray(data["values"], dtype=np.float32),
                offsets=np.asarray(data["offsets"], dtype=np.int64),
            )
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInputError(
            f"{path}: not an evaluation task: {error}", "invalid_task"
        ) from error
    needed = task.windows * task.prediction_length
    if len(task.offsets) < 2 or int(np.diff(task.offsets).min()) <= needed:
        raise InvalidInputError(f"{path}: a series is shorter than its windows", "invalid_task")
    return task


def forecast_task(
    model: SignalForecaster, task: Task, *, context_length: int | None, batch_tokens: int
) -> NDArray[np.float32]:
    """Quantiles [n_windows, 9, prediction_length]; a window without any history forecasts 0.

    Every series is read once: the state after a window's history goes on to the next window.
    ``context_length`` bounds what is read before the first window, None = everything.
    """
    series = [values.astype(np.float64) for values in task.series()]
    out = np.empty((len(series), task.windows, task.prediction_length, len(LEVELS)))
    read = [min(task.cuts(len(s))[0], context_length or len(s)) for s in series]
    for rows in batches(read, batch_tokens):
        parts = [_parts(series[row], task, read[row]) for row in rows]
        state: State | None = None
        for window, part in enumerate(zip(*parts, strict=True)):
            state = consume(model, part, batch_tokens, state)
            forecast = model.forecast(state, task.prediction_length, LEVELS)
            out[rows, window] = forecast.cpu().numpy()
    flat = out.reshape(-1, task.prediction_length, len(LEVELS))
    return np.nan_to_num(flat.transpose(0, 2, 1)).astype(np.float32)


def _parts(series: Floats, task: Task, read: int) -> list[Floats]:
    """What is newly known before each window: some history, then the windows passed by."""
    cuts = task.cuts(len(series))
    edges = [cuts[0] - read, *cuts]
    return [series[a:b] for a, b in itertools.pairwise(edges)]


class Scores(NamedTuple):
    """mase: mean absolute scaled error of the median; quantile_loss: summed pinball loss (times 2)
    over the summed absolute target, averaged over the levels; coverage: share of targets inside
    the central 80% interval. All are NaN when there is nothing to score."""

    mase: float
    quantile_loss: float
    coverage: float


def score(task: Task, quantiles: NDArray[np.float32]) -> Scores:
    """Score quantiles [n_windows, 9, prediction_length] against the task's windows.

    Sources: Hyndman and Koehler 2006 (MASE, scaled by the seasonal naive error of each window's
    own past); Park et al. 2022 (weighted quantile loss, an estimate of the CRPS).
    """
    truth = task.targets()
    known = np.isfinite(truth)
    levels = np.asarray(LEVELS)[:, None]
    error = truth[:, None] - quantiles.astype(np.float64)
    pinball = np.where(known[:, None], np.maximum(levels * error, (levels - 1.0) * error), 0.0)
    weight = np.abs(truth[known]).sum()
    scale = np.asarray([_seasonal_error(past, task.season) for past in task.contexts()])
    usable = known & (scale > 0)[:, None]
    scaled = (np.abs(error[:, len(LEVELS) // 2]) / np.where(scale > 0, scale, 1.0)[:, None])[usable]
    inside = (truth >= quantiles[:, 0]) & (truth <= quantiles[:, -1])
    return Scores(
        mase=float(scaled.mean()) if scaled.size else float("nan"),
        quantile_loss=float(2.0 * pinball.mean(1).sum() / weight) if weight else float("nan"),
        coverage=float(inside[known].mean()) if known.any() else float("nan"),
    )


def _seasonal_error(past: NDArray[np.float32], season: int) -> float:
    """Mean absolute seasonal difference of the observed pairs, 0 where there is none."""
    lag = season if season <= len(past) else 1
    gaps = np.abs(past[lag:].astype(np.float64) - past[:-lag])
    seen = gaps[np.isfinite(gaps)]
    return float(seen.mean()) if seen.size else 0.0
