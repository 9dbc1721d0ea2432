"""The stepwise half of a tick: one batched step, and the forecasts it completes."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from kssm.errors import KSSMError
from kssm.runtime.contract import Floats
from kssm.runtime.executor import Executor
from kssm.runtime.generation import Generator
from kssm.runtime.jobs import Append, Generate, Held, Read
from kssm.runtime.layout import Layout
from kssm.runtime.monitors import Monitors, note
from kssm.runtime.outcomes import Outcome, attempt, fail, numerical_fault
from kssm.runtime.reads import Answer, Reader
from kssm.runtime.schedule import Slice
from kssm.runtime.statistics import Recorder

Work = Sequence[Slice[Append]]


class Streams:
    """Runs one token of each job; keeps no jobs of its own.

    A job is atomic whatever the model does: its rows are kept aside before its first token, and
    put back when it fails. That is left out for single tokens where the model does so itself (a
    copy of a row at three resolutions costs a quarter of its compiled step).

    What a tick does for each of its jobs is what the host's time goes to with many sessions: it
    is done for all of them in one call where there is one.
    """

    def __init__(self, executor: Executor, reader: Reader, recorder: Recorder) -> None:
        self._executor = executor
        self._reader = reader
        self._recorder = recorder
        self._generator = Generator(executor)
        self._monitors = Monitors(executor.arena)

    def run(self, work: Work, reads: Sequence[Read]) -> list[Outcome]:
        """Step ``work``, answer the jobs that end with it and ``reads``; returns what ended."""
        work, withdrawn = self._generator.withdraw(work)
        return [*withdrawn, *self._run(work, reads)]

    def _run(self, work: Work, reads: Sequence[Read]) -> list[Outcome]:
        if not work:
            return self._reader.answer(reads)
        started = time.perf_counter()
        layout = Layout.of([job for job, _, _ in work])
        result = attempt(lambda: self._advance(work, layout, reads))
        if isinstance(result, KSSMError):
            self._restore(layout.jobs)
            return [*fail(layout.jobs, result), *self._reader.answer(reads)]
        self._recorder.step(len(layout.slots), time.perf_counter() - started)
        return result

    def _advance(self, work: Work, layout: Layout[Append], reads: Sequence[Read]) -> list[Outcome]:
        """Launch everything, then wait once."""
        self._protect(work, layout)
        self._generator.draw(work)
        values = np.concatenate([job.values[start] for job, start, _ in work])
        dt = layout.spread([1.0 if job.dt is None else job.dt[start] for job, start, _ in work])
        stepped = self._executor.step(layout.slots, values, dt, layout.numbers)
        answers = self._reader.launch([*_ending(work), *reads])
        tail, healthy = (self._executor.fetch(pending) for pending in stepped)
        rows = len(values)
        faulty = _failures(layout, healthy[:rows])
        self._watch(layout, faulty, values, tail[:rows])
        return self._digest(work, faulty, answers)

    def _watch(
        self, layout: Layout[Append], faulty: Collection[Append], values: Floats, tail: Floats
    ) -> None:
        """Show the samples and their tails to the monitors of the jobs that go on."""
        if len(faulty) == len(layout.jobs):
            return
        if faulty:
            good = layout.spread([job not in faulty for job in layout.jobs])
            layout = Layout.of([job for job in layout.jobs if job not in faulty])
            values, tail = values[good], tail[good]
        said = np.empty((len(values), 2))
        said[:, 0], said[:, 1] = self._monitors.step(layout.slots, values, tail)
        for job, (start, stop) in zip(layout.jobs, layout.spans(), strict=True):
            note(job, said[start:stop])

    def _digest(
        self, work: Work, faulty: Collection[Append], answers: Sequence[Answer]
    ) -> list[Outcome]:
        failed = [job for job, _, _ in work if job in faulty]
        self._restore(failed)
        faults = [
            Outcome(job, error=numerical_fault("the state left the finite range")) for job in failed
        ]
        generated = self._generator.tell(work, faulty)
        return [*faults, *generated, *self._reader.collect(answers, faulty)]

    def _protect(self, work: Work, layout: Layout[Append]) -> None:
        kept = self._executor.rows_together
        jobs = [job for job, start, _ in work if start == 0 and not _is_kept(job, kept)]
        if not jobs:
            return
        own = layout if len(jobs) == len(work) else Layout.of(jobs)
        once = all(len(job.values) == 1 for job in jobs)
        rows = self._executor.keep(own.slots, once=once)
        for job, (start, stop) in zip(jobs, own.spans(), strict=True):
            job.held = Held(rows, start, stop)

    def _restore(self, jobs: Sequence[Append]) -> None:
        for job in jobs:
            if job.held is not None:
                self._executor.arena.write(job.session.rows.slots, job.held.rows())


def _ending(work: Work) -> list[Append]:
    """The jobs that wait for nothing but their forecast after this token."""
    return [
        job for job, _, stop in work if stop == len(job.values) and not isinstance(job, Generate)
    ]


def _failures(layout: Layout[Append], healthy: NDArray[np.bool_]) -> set[Append]:
    """The jobs of which a row is not healthy."""
    if healthy.all():
        return set()
    places = zip(layout.jobs, layout.spans(), strict=True)
    return {job for job, (start, stop) in places if not healthy[start:stop].all()}


def _is_kept(job: Append, rows: int) -> bool:
    """Whether the job is one token of at most so many rows."""
    return job.session.channels <= rows and len(job.values) == 1
