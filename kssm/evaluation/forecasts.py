"""Forecasts of a task's windows, in prefill mode (whole histories) and frame by frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from kssm.evaluation.tasks import Floats, Task
from kssm.forecast.batch import batches, consume
from kssm.forecast.distribution import LEVELS
from kssm.forecast.forecaster import SignalForecaster
from kssm.models import State
from kssm.runtime import Engine, ForecastResult


def forecast_task(
    model: SignalForecaster, task: Task, *, context_length: int | None, batch_tokens: int
) -> NDArray[np.float32]:
    """Quantiles [n_windows, 9, prediction_length]; a window without any history forecasts 0.

    Every series is read once: the state after a window's history goes on to the next window.
    ``context_length`` bounds what is read before the first window, None = everything.
    """
    parts = task.parts(context_length)
    out = _empty(task)
    for rows in batches([len(part[0]) for part in parts], batch_tokens):
        state: State | None = None
        for window, part in enumerate(zip(*(parts[row] for row in rows), strict=True)):
            state = consume(model, part, batch_tokens, state)
            forecast = model.forecast(state, task.prediction_length, LEVELS)
            out[rows, window] = forecast.cpu().numpy()
    return _flat(out)


def stream_task(engine: Engine, task: Task, *, context_length: int | None) -> NDArray[np.float32]:
    """As ``forecast_task``, one sample at a time: a session of ``engine`` for every series.

    Each sample is a message of its own, and all sessions stream side by side.
    """
    parts = task.parts(context_length)
    out = _empty(task)
    size = engine.config.max_rows
    for first in range(0, len(parts), size):
        group = parts[first : first + size]
        keys = [future.result() for future in [engine.open(1) for _ in group]]
        for window, part in enumerate(zip(*group, strict=True)):
            _feed(engine, keys, part)
            reads = [engine.forecast(key, task.prediction_length, LEVELS) for key in keys]
            for row, read in enumerate(reads, first):
                out[row, window] = read.result().quantiles[0].T
        for released in [engine.release(key) for key in keys]:
            released.result()
    return _flat(out)


def _feed(engine: Engine, keys: Sequence[int], parts: Sequence[Floats]) -> None:
    """Every sample of every part, oldest first; half of the engine's queue is used."""
    pending: list[Future[ForecastResult]] = []
    for key, sample in _frames(keys, parts):
        pending.append(engine.append(key, sample, want_forecast=False))
        if len(pending) >= engine.config.max_pending // 2:
            _wait(pending)
    _wait(pending)


def _frames(keys: Sequence[int], parts: Sequence[Floats]) -> Iterator[tuple[int, Floats]]:
    for time in range(max(map(len, parts))):
        for key, values in zip(keys, parts, strict=True):
            if time < len(values):
                yield key, values[time : time + 1, None]


def _wait(pending: list[Future[ForecastResult]]) -> None:
    for future in pending:
        future.result()
    pending.clear()


def _empty(task: Task) -> Floats:
    return np.empty((len(task.offsets) - 1, task.windows, task.prediction_length, len(LEVELS)))


def _flat(out: Floats) -> NDArray[np.float32]:
    windows = out.reshape(-1, *out.shape[2:]).transpose(0, 2, 1)
    return np.nan_to_num(windows).astype(np.float32)
