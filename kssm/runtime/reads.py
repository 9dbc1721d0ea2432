"""Forecasts from arena rows: jobs with equal queries share one call."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kssm.errors import KSSMError
from kssm.forecast.anomaly import score_from_tail
from kssm.runtime.contract import Floats
from kssm.runtime.executor import Executor, finite_rows
from kssm.runtime.jobs import Append, ForecastResult, Job, Read
from kssm.runtime.layout import Layout
from kssm.runtime.outcomes import Outcome, attempt, fail, numerical_fault
from kssm.runtime.statistics import Recorder
from kssm.runtime.transport import Pending
from kssm.runtime.validation import Query

Asking = Append | Read


@dataclass(frozen=True)
class Answer:
    """A launched call for the layout's jobs, or the error that stopped it; no query, no call."""

    query: Query | None
    layout: Layout[Asking]
    quantiles: Pending | KSSMError | None = None


class Reader:
    """Launches and collects forecasts; keeps no jobs of its own."""

    def __init__(self, executor: Executor, recorder: Recorder) -> None:
        self._executor = executor
        self._recorder = recorder

    def answer(self, jobs: Sequence[Asking]) -> list[Outcome]:
        """The forecasts of jobs that have nothing more to consume."""
        return self.collect(self.launch(jobs))

    def launch(self, jobs: Sequence[Asking]) -> list[Answer]:
        """Start the forecasts without waiting for the device; never raises for a model's error."""
        groups: dict[Query | None, list[Asking]] = {}
        for job in jobs:
            groups.setdefault(job.query, []).append(job)
        return [self._call(query, Layout.of(group)) for query, group in groups.items()]

    def collect(self, answers: Sequence[Answer], faulty: Collection[Job] = ()) -> list[Outcome]:
        """Wait for the forecasts; jobs in ``faulty`` have failed already and are left out."""
        outcomes = [outcome for answer in answers for outcome in self._outcomes(answer)]
        return [o for o in outcomes if o.job not in faulty] if faulty else outcomes

    def _call(self, query: Query | None, layout: Layout[Asking]) -> Answer:
        if query is None:
            return Answer(None, layout)
        self._recorder.forecasts += len(layout.jobs)
        return Answer(query, layout, attempt(lambda: self._executor.forecast(layout.slots, query)))

    def _outcomes(self, answer: Answer) -> list[Outcome]:
        layout, quantiles = answer.layout, self._quantiles(answer)
        if isinstance(quantiles, KSSMError):
            return fail(layout.jobs, quantiles)
        sound = None if answer.query is None else self._sound(layout, quantiles)
        return _results(layout, quantiles, _anomalies(layout.jobs), sound)

    def _quantiles(self, answer: Answer) -> Floats | KSSMError:
        """[rows, horizon, Q], Q = horizon = 0 without a query."""
        launched, rows = answer.quantiles, len(answer.layout.slots)
        if launched is None:
            return np.empty((rows, 0, 0))
        if isinstance(launched, KSSMError):
            return launched  # else fetch: a device reports its errors late
        return attempt(lambda: self._executor.fetch(launched)[:rows])

    def _sound(self, layout: Layout[Asking], quantiles: Floats) -> NDArray[np.bool_]:
        """Rows whose forecast is finite, or absent (NaN) because they have seen no value yet."""
        flat = quantiles.reshape(len(quantiles), -1)
        sound = np.isfinite(flat @ np.ones(flat.shape[1]))  # quicker than to ask each number
        if sound.all():
            return sound
        absent = np.isnan(flat).all(axis=1)
        if absent.any():
            state = self._executor.arena.gather(layout.slots[absent])
            sound[absent] = self._executor.fetch(finite_rows(state))
        return sound


def _anomalies(jobs: Sequence[Asking]) -> Floats:
    """Score, tail and surprise of the jobs' samples: [rows, 3], NaN = nothing was said."""
    said = [
        np.full((job.session.channels, 2), np.nan)
        if isinstance(job, Read) or job.said is None
        else job.said
        for job in jobs
    ]
    known = np.concatenate(said)
    return np.concatenate([score_from_tail(known[:, :1]), known], axis=1)


def _results(
    layout: Layout[Asking],
    quantiles: Floats,
    anomalies: Floats,
    sound: NDArray[np.bool_] | None = None,
) -> list[Outcome]:
    """Each job's part of quantiles [rows, horizon, Q] and anomalies [rows, 3].

    ``sound`` [rows], None = all: a row that is not is its job's fault.
    """
    places = zip(layout.jobs, layout.spans(), strict=True)
    if sound is None or sound.all():
        return [_outcome(job, quantiles[a:b], anomalies[a:b]) for job, (a, b) in places]
    return [
        _outcome(job, quantiles[a:b], anomalies[a:b])
        if sound[a:b].all()
        else Outcome(job, error=numerical_fault("the forecast is not finite", applied=True))
        for job, (a, b) in places
    ]


def _outcome(job: Asking, quantiles: Floats, anomaly: Floats) -> Outcome:
    """The job's result with numbers of its own, so that it does not hold on to a whole batch's."""
    query, own = job.query, anomaly.copy()
    if query is None:
        return Outcome(job, ForecastResult(quantiles, 0, (), own))
    by_level = quantiles.copy().transpose(0, 2, 1)  # copied as it lies
    return Outcome(job, ForecastResult(by_level, query.horizon, query.levels, own))
