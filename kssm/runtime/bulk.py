"""The bulk half of a tick: chunks of prompts and of predictions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kssm.errors import KSSMError
from kssm.runtime.contract import Floats, State
from kssm.runtime.executor import Executor, Prefilled, finite_rows, join
from kssm.runtime.jobs import Append, Held, Predict, Prediction, cut
from kssm.runtime.layout import Layout
from kssm.runtime.monitors import Monitors, note
from kssm.runtime.outcomes import Outcome, attempt, fail, numerical_fault
from kssm.runtime.reads import Reader
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

    def run(self, work: Sequence[Slice[Append | Predict]]) -> list[Outcome]:
        """Run one tick's chunks; returns what ended."""
        outcomes: list[Outcome] = []
        prompts: list[Slice[Append]] = []
        for job, start, stop in work:
            if isinstance(job, Predict):
                outcomes += self._predict(job, start, stop)
            else:
                prompts.append(Slice(job, start, stop))
        for group in group_chunks(prompts):
            outcomes += self._prompts(group)
        return outcomes

    def _prompts(self, work: Sequence[Slice[Append]]) -> list[Outcome]:
        result = attempt(lambda: self._digest(work, self._prefill(work)))
        return (
            fail([job for job, _, _ in work], result) if isinstance(result, KSSMError) else result
        )

    def _prefill(self, work: Sequence[Slice[Append]]) -> Prefilled:
        states = [self._state(job) for job, _, _ in work]
        rows = [
            (column, job.steps(start, stop))
            for job, start, stop in work
            for column in job.values[start:stop].T
        ]
        self._recorder.tokens_prefilled += sum(len(values) for values, _ in rows)
        return self._executor.prefill(join(states), rows)

    def _state(self, job: Append) -> State:
        if job.held is None:
            return self._executor.arena.gather(job.session.rows.slots)
        return job.held.rows()

    def _digest(self, work: Sequence[Slice[Append]], output: Prefilled) -> list[Outcome]:
        tail = self._executor.fetch(output.tail)
        faults: list[Outcome] = []
        ended: list[Append] = []
        layout = Layout.of([job for job, _, _ in work])
        for chunk, (start, stop) in zip(work, layout.spans(), strict=True):
            job = chunk.item
            if not output.finite[start:stop].all():
                fault = numerical_fault("the state left the finite range")
                faults.append(Outcome(job, error=fault))
                continue
            job.held = Held(lambda: output.state, start, stop)
            self._watch(chunk, tail[start:stop])
            if chunk.stop == job.tokens:
                ended.append(job)
        return [*faults, *self._finish(ended)]

    def _watch(self, chunk: Slice[Append], tail: Floats) -> None:
        """``tail`` is [channels, T], T at least as long as the chunk."""
        job, start, stop = chunk
        monitor = job.monitor or self._monitors.read(job.session.rows.slots)
        if monitor is None:
            return
        job.monitor = monitor
        values = job.values[start:stop]
        alarm = monitor.watch(values, tail[:, : len(values)].T)
        extreme = np.fmin.reduce(alarm.probability), np.fmax.reduce(alarm.surprise)
        note(job, np.stack(extreme, axis=1))

    def _finish(self, jobs: Sequence[Append]) -> list[Outcome]:
        if not jobs:
            return []
        slots = Layout.of(jobs).slots
        self._executor.arena.write(slots, join([j.held.rows() for j in jobs if j.held is not None]))
        self._monitors.write(slots, [job.monitor for job in jobs if job.monitor is not None])
        return self._reader.answer(jobs)

    def _predict(self, job: Predict, start: int, stop: int) -> list[Outcome]:
        result = attempt(lambda: self._predict_chunk(job, start, stop))
        return fail([job], result) if isinstance(result, KSSMError) else result

    def _predict_chunk(self, job: Predict, start: int, stop: int) -> list[Outcome]:
        """Advance the batch's rows, longest first, that reach into the chunk."""
        batch = job.batches[0]
        if job.state is None:
            job.state = self._executor.initial_state(len(batch))
        rows = [
            (values[start:stop], dt[start:stop])
            for values, dt in (job.series[index] for index in batch)
            if len(values) > start
        ]
        self._recorder.tokens_prefilled += sum(len(values) for values, _ in rows)
        output = self._executor.prefill(cut(job.state, 0, len(rows)), rows)
        if job.watches:
            self._watch_series(job, start, stop, self._executor.fetch(output.tail))
        job.state = join([output.state, cut(job.state, len(rows), len(batch))])
        if stop < len(job.series[batch[0]][0]):
            return []
        return self._finish_batch(job, batch)

    def _watch_series(self, job: Predict, start: int, stop: int, tail: Floats) -> None:
        """``tail`` [rows, T] of the batch's series that reach into the chunk."""
        for index, row in zip(job.batches[0], tail, strict=False):
            values = job.series[index][0][start:stop]
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
