"""The stepwise half of a tick: one batched step, and the forecasts it completes."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kssm.errors import KSSMError
from kssm.runtime.contract import Floats
from kssm.runtime.executor import Executor
from kssm.runtime.generation import Generator
from kssm.runtime.jobs import Append, Generate, Held, Read
from kssm.runtime.outcomes import Outcome, attempt, fail, numerical_fault
from kssm.runtime.reads import Answer, Reader, slots_of, spans
from kssm.runtime.schedule import Slice
from kssm.runtime.statistics import Recorder
from kssm.runtime.transport import Pending

Work = tuple[Slice, Append]


class Streams:
    """Runs one token of each job; keeps no jobs of its own.

    A job is atomic whatever the model does: its rows are kept aside before its first token, and
    put back when it fails. (The copy costs about 4% of a compiled step.)
    """

    def __init__(self, executor: Executor, reader: Reader, recorder: Recorder) -> None:
        self._executor = executor
        self._reader = reader
        self._recorder = recorder
        self._generator = Generator(executor)

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
        stepped = self._step(work)
        ending = [
            job for step, job in work if step.stop == job.tokens and not isinstance(job, Generate)
        ]
        answers = self._reader.launch([*ending, *reads])
        tail, healthy = (self._executor.fetch(pending) for pending in stepped)
        return self._digest(work, tail, healthy, answers)

    def _step(self, work: Sequence[Work]) -> tuple[Pending, Pending]:
        values = np.concatenate([job.values[step.start] for step, job in work])
        jobs = [job for _, job in work]
        dt = np.repeat(
            [job.dt[step.start] for step, job in work], [job.session.channels for job in jobs]
        )
        return self._executor.step(slots_of(jobs), values, dt)

    def _digest(
        self,
        work: Sequence[Work],
        tail: Floats,
        healthy: NDArray[np.bool_],
        answers: Sequence[Answer],
    ) -> list[Outcome]:
        jobs = [job for _, job in work]
        faulty: set[Append] = set()
        for job, (start, stop) in zip(jobs, spans(jobs), strict=True):
            if healthy[start:stop].all():
                np.fmin(job.tail, tail[start:stop], out=job.tail)
            else:
                faulty.add(job)
        failed = [job for job in jobs if job in faulty]
        self._restore(failed)
        faults = [
            Outcome(job, error=numerical_fault("the state left the finite range")) for job in failed
        ]
        generated = self._generator.tell(work, faulty)
        return [*faults, *generated, *self._reader.collect(answers, faulty)]

    def _protect(self, work: Sequence[Work]) -> None:
        jobs = [job for step, job in work if step.start == 0]
        if not jobs:
            return
        kept = self._executor.arena.gather(slots_of(jobs))
        for job, (start, stop) in zip(jobs, spans(jobs), strict=True):
            job.held = Held(kept, start, stop)

    def _restore(self, jobs: Sequence[Append]) -> None:
        for job in jobs:
            if job.held is not None:
                self._executor.arena.write(job.session.rows.slots, job.held.rows())
