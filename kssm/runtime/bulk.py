"""The bulk half of a tick: chunks of prompts and of predictions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kssm.errors import KSSMError
from kssm.runtime.contract import Floats, State
from kssm.runtime.executor import Executor, Prefilled, finite_rows, join
from kssm.runtime.jobs import Append, Held, Predict, Prediction
from kssm.runtime.monitors import Monitors, note
from kssm.runtime.outcomes import Outcome, attempt, fail, numerical_fault
from kssm.runtime.reads import Reader, slots_of, spans
from kssm.runtime.schedule import Slice, group_chunks
from kssm.runtime.statistics import Recorder


class Bulk:
    """Runs chunks through the forecaster's parallel form; keeps no jobs of its own.

    A prompt's rows live outside the arena until its last chunk turned out finite.
    """

    def __init__(self, executor: Executor, reader: Reader, recorder: Recorder) -> None:
        self._executor = executor
        self._reader = reader
        self._recorder = recorder
        self._monitors = Monitors(executor.arena)

    def run(self, work: Sequence[tuple[Slice, Append | Predict]]) -> list[Outcome]:
        """Run one tick's chunks; returns what ended."""
        outcomes: list[Outcome] = []
        prompts: dict[Slice, Append] = {}
        for chunk, job in work:
            if isinstance(job, Predict):
                outcomes += self._predict(job, chunk)
            else:
                prompts[chunk] = job
        for group in group_chunks(list(prompts)):
            outcomes += self._prompts([(chunk, prompts[chunk]) for chunk in group])
        return outcomes

    def _prompts(self, work: Sequence[tuple[Slice, Append]]) -> list[Outcome]:
        result = attempt(lambda: self._digest(work, self._prefill(work)))
        return fail([job for _, job in work], result) if isinstance(result, KSSMError) else result

    def _prefill(self, work: Sequence[tuple[Slice, Append]]) -> Prefilled:
        states = [self._state(job) for _, job in work]
        rows = [
            (column, job.dt[chunk.start : chunk.stop])
            for chunk, job in work
            for column in job.values[chunk.start : chunk.stop].T
        ]
        self._recorder.tokens_prefilled += sum(len(values) for values, _ in rows)
        return self._executor.prefill(join(states), rows)

    def _state(self, job: Append) -> State:
        if job.held is None:
            return self._executor.arena.gather(job.session.rows.slots)
        return job.held.rows()

    def _digest(self, work: Sequence[tuple[Slice, Append]], output: Prefilled) -> list[Outcome]:
        tail = self._executor.fetch(output.tail)
        faults: list[Outcome] = []
        ended: list[Append] = []
        for (chunk, job), (start, stop) in zip(work, spans([job for _, job in work]), strict=True):
            if not output.finite[start:stop].all():
                fault = numerical_fault("the state left the finite range")
                faults.append(Outcome(job, error=fault))
                continue
            job.held = Held(output.state, start, stop)
            self._watch(job, chunk, tail[start:stop])
            if chunk.stop == job.tokens:
                ended.append(job)
        return [*faults, *self._finish(ended)]

    def _watch(self, job: Append, chunk: Slice, tail: Floats) -> None:
        """``tail`` is [channels, T], T at least as long as the chunk."""
        monitor = job.monitor or self._monitors.read(job.session.rows.slots)
        if monitor is None:
            return
        job.monitor = monitor
        values = job.values[chunk.start : chunk.stop]
        alarm = monitor.watch(values, tail[:, : len(values)].T)
        note(job, np.fmin.reduce(alarm.probability), np.fmax.reduce(alarm.surprise))

    def _finish(self, jobs: Sequence[Append]) -> list[Outcome]:
        if not jobs:
            return []
        slots = slots_of(jobs)
        self._executor.arena.write(slots, join([j.held.rows() for j in jobs if j.held is not None]))
        self._monitors.write(slots, [job.monitor for job in jobs if job.monitor is not None])
        return self._reader.answer(jobs)

    def _predict(self, job: Predict, chunk: Slice) -> list[Outcome]:
        result = attempt(lambda: self._predict_chunk(job, chunk))
        return fail([job], result) if isinstance(result, KSSMError) else result

    def _predict_chunk(self, job: Predict, chunk: Slice) -> list[Outcome]:
        """Advance the batch's rows, longest first, that reach into the chunk."""
        batch = job.batches[0]
        if job.state is None:
            job.state = self._executor.initial_state(len(batch))
        rows = [
            (values[chunk.start : chunk.stop], dt[chunk.start : chunk.stop])
            for values, dt in (job.series[index] for index in batch)
            if len(values) > chunk.start
        ]
        self._recorder.tokens_prefilled += sum(len(values) for values, _ in rows)
        output = self._executor.prefill(Held(job.state, 0, len(rows)).rows(), rows)
        if job.watches:
            self._watch_series(job, chunk, self._executor.fetch(output.tail))
        job.state = join([output.state, Held(job.state, len(rows), len(batch)).rows()])
        if chunk.stop < len(job.series[batch[0]][0]):
            return []
        return self._finish_batch(job, batch)

    def _watch_series(self, job: Predict, chunk: Slice, tail: Floats) -> None:
        """``tail`` [rows, T] of the batch's series that reach into the chunk."""
        for index, row in zip(job.batches[0], tail, strict=False):
            values = job.series[index][0][chunk.start : chunk.stop]
            job.watches[index].take(values, row[: len(values)])

    def _finish_batch(self, job: Predict, batch: Sequence[int]) -> list[Outcome]:
        assert job.state is not None
        quantiles = self._executor.forecast_state(job.state, job.query)
        sound = self._executor.fetch(finite_rows(job.state)) & ~np.isinf(quantiles).any(axis=(1, 2))
        if not sound.all():
            series = batch[int(np.argmin(sound))]
            fault = numerical_fault("a series' forecast is not finite", series=series)
            return [Outcome(job, error=fault)]
        job.quantiles[batch] = quantiles
        job.state = None
        job.batches.popleft()
        if job.batches:
            return []
        alarms = tuple(watch.alarm() for watch in job.watches)
        return [Outcome(job, Prediction(job.quantiles, alarms))]
