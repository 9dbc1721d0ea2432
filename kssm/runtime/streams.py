"""The stepwise half of a tick: one batched step, and the forecasts it completes."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from kssm.errors import KSSMError
from kssm.runtime.contract import Floats, Slots
from kssm.runtime.executor import Executor
from kssm.runtime.generation import Generator
from kssm.runtime.jobs import Append, Generate, Held, Read
from kssm.runtime.monitors import Monitors, note
from kssm.runtime.outcomes import Outcome, attempt, fail, numerical_fault
from kssm.runtime.reads import Answer, Reader, slots_of, spans
from kssm.runtime.schedule import Slice
from kssm.runtime.statistics import Recorder
from kssm.runtime.transport import Pending

Work = tuple[Slice, Append]


class Streams:
    """Runs one token of each job; keeps no jobs of its own.

    A job is atomic whatever the model does: its rows are kept aside before its first token, and
    put back when it fails. That is left out for single tokens where the model does so itself (a
    copy of a row at three resolutions costs a quarter of its compiled step).
    """

    def __init__(self, executor: Executor, reader: Reader, recorder: Recorder) -> None:
        self._executor = executor
        self._reader = reader
        self._recorder = recorder
        self._generator = Generator(executor)
        self._monitors = Monitors(executor.arena)

    def run(self, work: Sequence[Work], reads: Sequence[Read]) -> list[Outcome]:
        """Step ``work``, answer the jobs that end with it and ``reads``; returns what ended."""
        work, withdrawn = self._generator.withdraw(work)
        return [*withdrawn, *self._run(work, reads)]

    def _run(self, work: Sequence[Work], reads: Sequence[Read]) -> list[Outcome]:
        if not work:
            return self._reader.answer(reads)
        started = time.perf_counter()
        result = attempt(lambda: self._advance(work, reads))
        if isinstance(result, KSSMError):
            jobs = [job for _, job in work]
            self._restore(jobs)
            return [*fail(jobs, result), *self._reader.answer(reads)]
        rows = sum(job.session.channels for _, job in work)
        self._recorder.step(rows, time.perf_counter() - started)
        return result

    def _advance(self, work: Sequence[Work], reads: Sequence[Read]) -> list[Outcome]:
        """Launch everything, then wait once."""
        self._protect(work)
        self._generator.draw(work)
        slots = slots_of([job for _, job in work])
        values = np.concatenate([job.values[step.start] for step, job in work])
        stepped = self._step(work, slots, values)
        ending = [
            job for step, job in work if step.stop == job.tokens and not isinstance(job, Generate)
        ]
        answers = self._reader.launch([*ending, *reads])
        tail, healthy = (self._executor.fetch(pending) for pending in stepped)
        rows = len(slots)
        faulty = self._failures(work, healthy[:rows])
        self._watch(work, faulty, slots, values, tail[:rows])
        return self._digest(work, faulty, answers)

    def _step(self, work: Sequence[Work], slots: Slots, values: Floats) -> tuple[Pending, Pending]:
        dt = np.repeat(
            [job.dt[step.start] for step, job in work], [job.session.channels for _, job in work]
        )
        groups = np.repeat(np.arange(len(work)), [job.session.channels for _, job in work])
        return self._executor.step(slots, values, dt, groups)

    def _failures(self, work: Sequence[Work], healthy: NDArray[np.bool_]) -> set[Append]:
        """The jobs of which a row is not healthy."""
        if healthy.all():
            return set()
        jobs = [job for _, job in work]
        places = zip(jobs, spans(jobs), strict=True)
        return {job for job, (start, stop) in places if not healthy[start:stop].all()}

    def _watch(
        self,
        work: Sequence[Work],
        faulty: Collection[Append],
        slots: Slots,
        values: Floats,
        tail: Floats,
    ) -> None:
        """Show the samples and their tails to the monitors of the jobs that go on."""
        jobs = [job for _, job in work]
        if faulty:
            good = np.repeat(
                [job not in faulty for job in jobs], [j.session.channels for j in jobs]
            )
            jobs = [job for job in jobs if job not in faulty]
            slots, values, tail = slots[good], values[good], tail[good]
        probability, surprise = self._monitors.step(slots, values, tail)
        for job, (start, stop) in zip(jobs, spans(jobs), strict=True):
            note(job, probability[start:stop], surprise[start:stop])

    def _digest(
        self, work: Sequence[Work], faulty: Collection[Append], answers: Sequence[Answer]
    ) -> list[Outcome]:
        failed = [job for _, job in work if job in faulty]
        self._restore(failed)
        faults = [
            Outcome(job, error=numerical_fault("the state left the finite range")) for job in failed
        ]
        generated = self._generator.tell(work, faulty)
        return [*faults, *generated, *self._reader.collect(answers, faulty)]

    def _protect(self, work: Sequence[Work]) -> None:
        kept = self._executor.rows_together
        jobs = [job for step, job in work if step.start == 0 and not _is_kept(job, kept)]
        if not jobs:
            return
        rows = self._executor.arena.whole(slots_of(jobs))
        for job, (start, stop) in zip(jobs, spans(jobs), strict=True):
            job.held = Held(rows, start, stop)

    def _restore(self, jobs: Sequence[Append]) -> None:
        for job in jobs:
            if job.held is not None:
                self._executor.arena.write(job.session.rows.slots, job.held.rows())


def _is_kept(job: Append, rows: int) -> bool:
    """Whether the job is one token of at most so many rows."""
    return job.tokens == 1 and job.session.channels <= rows
