"""Forecasts from arena rows: jobs with equal queries share one call."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from kssm.errors import KSSMError
from kssm.forecast.anomaly import score_from_tail
from kssm.runtime.contract import Floats, Slots
from kssm.runtime.executor import Executor, finite_rows
from kssm.runtime.jobs import Append, ForecastResult, Job, Read
from kssm.runtime.outcomes import Outcome, attempt, fail, numerical_fault
from kssm.runtime.statistics import Recorder
from kssm.runtime.transport import Pending
from kssm.runtime.validation import Query


@dataclass(frozen=True)
class Answer:
    """A launched call for ``jobs``, or the error that stopped it; no query, no quantiles."""

    query: Query | None
    jobs: list[Append | Read]
    quantiles: Pending | KSSMError | None = None


class Reader:
    """Launches and collects forecasts; keeps no jobs of its own."""

    def __init__(self, executor: Executor, recorder: Recorder) -> None:
        self._executor = executor
        self._recorder = recorder

    def answer(self, jobs: Sequence[Append | Read]) -> list[Outcome]:
        """The forecasts of jobs that have nothing more to consume."""
        return self.collect(self.launch(jobs))

    def launch(self, jobs: Sequence[Append | Read]) -> list[Answer]:
        """Start the forecasts without waiting for the device; never raises for a model's error."""
        groups: dict[Query | None, list[Append | Read]] = {}
        for job in jobs:
            groups.setdefault(job.query, []).append(job)
        return [self._call(query, group) for query, group in groups.items()]

    def collect(self, answers: Sequence[Answer], faulty: Collection[Job] = ()) -> list[Outcome]:
        """Wait for the forecasts; jobs in ``faulty`` have failed already and are left out."""
        return [
            outcome
            for answer in answers
            for outcome in self._outcomes(answer)
            if outcome.job not in faulty
        ]

    def _call(self, query: Query | None, jobs: list[Append | Read]) -> Answer:
        if query is None:
            return Answer(None, jobs)
        self._recorder.forecasts += len(jobs)
        launched = attempt(lambda: self._executor.forecast(slots_of(jobs), query))
        return Answer(query, jobs, launched)

    def _outcomes(self, answer: Answer) -> list[Outcome]:
        quantiles = self._quantiles(answer)
        if isinstance(quantiles, KSSMError):
            return fail(answer.jobs, quantiles)
        tail = np.concatenate([job.tail for job in answer.jobs])
        score = score_from_tail(tail)
        sound = self._sound(answer.jobs, quantiles)
        return [
            _outcome(job, quantiles[start:stop], score[start:stop])
            if sound[start:stop].all()
            else Outcome(job, error=numerical_fault("the forecast is not finite", applied=True))
            for job, (start, stop) in zip(answer.jobs, spans(answer.jobs), strict=True)
        ]

    def _sound(self, jobs: Sequence[Append | Read], quantiles: Floats) -> NDArray[np.bool_]:
        """Rows whose forecast is finite, or absent (NaN) because they have seen no value yet."""
        flat = quantiles.reshape(len(quantiles), -1)
        sound = np.asarray(np.isfinite(flat).all(axis=1))
        absent = np.isnan(flat).all(axis=1) & ~sound
        if absent.any():
            state = self._executor.arena.gather(slots_of(jobs)[absent])
            sound[absent] = self._executor.fetch(finite_rows(state))
        return sound

    def _quantiles(self, answer: Answer) -> Floats | KSSMError:
        """[rows, Q, horizon], Q = horizon = 0 without a query."""
        launched = answer.quantiles
        rows = sum(job.session.channels for job in answer.jobs)
        if launched is None:
            return np.empty((rows, 0, 0))
        if isinstance(launched, KSSMError):
            return launched  # else fetch: a device reports its errors late
        return attempt(lambda: self._executor.fetch(launched)[:rows].transpose(0, 2, 1))


def _outcome(job: Append | Read, quantiles: Floats, score: Floats) -> Outcome:
    horizon, levels = (job.query.horizon, job.query.levels) if job.query else (0, ())
    result = ForecastResult(quantiles.copy(), horizon, levels, job.tail, score.copy(), job.surprise)
    return Outcome(job, result)


def slots_of(jobs: Sequence[Append | Read]) -> Slots:
    """The arena slots of the jobs' sessions, one after another."""
    return np.concatenate([job.session.rows.slots for job in jobs])


def spans(jobs: Sequence[Append | Read]) -> list[tuple[int, int]]:
    """Each job's rows in a batch of all of them: (start, stop)."""
    return list(pairwise(accumulate((job.session.channels for job in jobs), initial=0)))
