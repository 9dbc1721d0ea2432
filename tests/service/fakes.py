"""An engine without a model: forecasts are simple arithmetic on the sum of all samples."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch

from kssm.errors import CapacityError, KSSMError
from kssm.forecast.anomaly import Alarm
from kssm.runtime import EngineStats, ForecastResult, Prediction
from kssm.runtime.validation import check_dt, check_query, check_values


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop run until ``condition`` holds; the test's timeout bounds it."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)


class FakeForecaster:
    """What the service asks of a forecaster itself."""

    def state_spec(self) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"total": ((1,), torch.float64)}


class FakeEngine:
    """Does every job at once; all but ``open`` wait between ``hold`` and ``let_go``.

    ``fail_next`` makes the next append fail after it was submitted.
    """

    def __init__(self, max_rows: int = 1000) -> None:
        self.forecaster = FakeForecaster()
        self.state_spec = self.forecaster.state_spec()
        self.fingerprint = "f" * 64
        self.vocab_size = None
        self.alive = True
        self.totals: dict[int, np.ndarray] = {}
        self.max_rows = max_rows
        self.fail_next: KSSMError | None = None
        self.started = False
        self.closed = False
        self._next = 1
        self._held: list[Callable[[], None]] | None = None

    def start(self) -> None:
        self.started = True

    def close(self, drain: bool = True) -> None:
        self.closed = True

    def hold(self) -> None:
        self._held = []

    def let_go(self) -> None:
        held, self._held = self._held or [], None
        for job in held:
            job()

    @property
    def held(self) -> int:
        return len(self._held or [])

    def open(self, channels: int) -> Future[int]:
        return _settled(lambda: self._open(np.zeros((channels, 1))))

    def append(
        self,
        key: int,
        values: np.ndarray,
        *,
        dt: np.ndarray | None = None,
        horizon: int = 24,
        levels: Sequence[float] = (0.1, 0.5, 0.9),
        want_forecast: bool = True,
    ) -> Future[ForecastResult]:
        error, self.fail_next = self.fail_next, None

        def job() -> ForecastResult:
            total = self.totals[key]
            samples = check_values(values, len(total))
            steps = np.ones(len(samples)) if dt is None else check_dt(dt, len(samples))
            if error is not None and not error.details.get("applied"):
                raise error
            total += np.nansum(samples * steps[:, None], axis=0)[:, None]
            if error is not None:
                raise error
            return self._result(total, horizon, levels)

        return self._submit(job)

    def forecast(self, key: int, horizon: int, levels: Sequence[float]) -> Future[ForecastResult]:
        return self._submit(lambda: self._result(self.totals[key], horizon, levels))

    def reset(self, key: int) -> Future[None]:
        return self._submit(lambda: self.totals[key].fill(0))

    def fork(self, key: int) -> Future[int]:
        return self._submit(lambda: self._open(self.totals[key].copy()))

    def release(self, key: int) -> Future[None]:
        return self._submit(lambda: self._drop(key))

    def export(self, key: int) -> Future[dict[str, np.ndarray]]:
        return self._submit(lambda: {"total": self.totals[key].copy()})

    def load(self, key: int, tensors: Mapping[str, np.ndarray]) -> Future[None]:
        return self._submit(lambda: self.totals.update({key: np.array(tensors["total"])}))

    def predict(
        self,
        series: Sequence[np.ndarray],
        horizon: int,
        levels: Sequence[float],
        dt: Sequence[np.ndarray | None] | None = None,
        *,
        watched: bool = False,
    ) -> Future[Prediction]:
        def job() -> Prediction:
            check_query(horizon, levels, 10**6)
            totals = [np.nansum(check_values(column[:, None], 1)) for column in series]
            grid = np.array(totals)[:, None, None] + np.array(levels)[None, None, :]
            quantiles = np.broadcast_to(grid, (len(totals), horizon, len(levels))).copy()
            halves = [np.where(np.isnan(column), np.nan, 0.5) for column in series]
            alarms = tuple(Alarm(half, 3.0 * half) for half in halves)
            return Prediction(quantiles, alarms if watched else ())

        return self._submit(job)

    def stats(self) -> EngineStats:
        used = sum(len(total) for total in self.totals.values())
        counts = dict.fromkeys(EngineStats.__dataclass_fields__, 0)
        return EngineStats(**{**counts, "rows_used": used, "batch_sizes": {1: 2}, "step_ms": {}})

    def _open(self, total: np.ndarray) -> int:
        if sum(len(other) for other in self.totals.values()) + len(total) > self.max_rows:
            raise CapacityError("no rows are free", code="rows_exhausted")
        key, self._next = self._next, self._next + 1
        self.totals[key] = total
        return key

    def _drop(self, key: int) -> None:
        del self.totals[key]

    def _result(self, total: np.ndarray, horizon: int, levels: Sequence[float]) -> ForecastResult:
        query = check_query(horizon, levels, 10**6)
        ahead = total[:, :, None] + np.arange(query.horizon) + np.array(query.levels)[:, None]
        tail = np.where(total[:, 0] > 0, 0.5, np.nan)
        score = -np.log10(tail)
        anomaly = np.stack([score, tail, 3.0 * score], axis=1)
        return ForecastResult(ahead, query.horizon, query.levels, anomaly)

    def _submit(self, job: Callable[[], Any]) -> Future[Any]:
        if self._held is None:
            return _settled(job)
        future: Future[Any] = Future()
        self._held.append(lambda: _settle(future, job))
        return future


def _settled(job: Callable[[], Any]) -> Future[Any]:
    future: Future[Any] = Future()
    _settle(future, job)
    return future


def _settle(future: Future[Any], job: Callable[[], Any]) -> None:
    try:
        future.set_result(job())
    except Exception as error:  # noqa: BLE001
        future.set_exception(error)
