"""The engine without its thread: sessions, ticks and the settling of jobs.

Everything here runs on one thread. A tick is three verbs: schedule (``Schedule.next``), run
(``Streams`` and ``Bulk``) and postprocess (``_settle``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import InvalidStateError
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kssm.errors import InvalidInputError, KSSMError, NumericalError
from kssm.runtime.admission import Admission, Lane
from kssm.runtime.arena import Arena
from kssm.runtime.bulk import Bulk
from kssm.runtime.executor import Executor
from kssm.runtime.jobs import (
    Append,
    Control,
    Generate,
    Job,
    Open,
    Predict,
    Read,
    Release,
    Session,
    SessionJob,
)
from kssm.runtime.outcomes import Outcome, attempt
from kssm.runtime.reads import Reader
from kssm.runtime.schedule import Schedule, Tick
from kssm.runtime.statistics import EngineStats, Recorder
from kssm.runtime.streams import Streams


class Worker:
    """Takes accepted jobs and brings every one of them to an end.

    ``sessions`` is shared with the engine, which looks keys up and forgets released ones.
    """

    def __init__(
        self,
        executor: Executor,
        schedule: Schedule,
        admission: Admission,
        sessions: dict[int, Session],
    ) -> None:
        self._arena: Arena = executor.arena
        self._executor = executor
        self._schedule = schedule
        self._admission = admission
        self._sessions = sessions
        self._keys = count(1)
        self._items = count(1)
        self._accepted: dict[Job, None] = {}
        self._stepping: dict[int, Append] = {}
        self._chunking: dict[int, Append | Predict] = {}
        self._reads: list[Read] = []
        self._outcomes: list[Outcome] = []
        self._recorder = Recorder()
        reader = Reader(executor, self._recorder)
        self._streams = Streams(executor, reader, self._recorder)
        self._bulk = Bulk(executor, reader, self._recorder)

    @property
    def busy(self) -> bool:
        """Whether accepted jobs are waiting for a tick."""
        return bool(self._accepted)

    def accept(self, jobs: Sequence[Job]) -> None:
        """Take jobs in the order of their submission; what needs no tick is done at once."""
        self._accepted.update(dict.fromkeys(jobs))
        for job in jobs:
            if isinstance(job, SessionJob):
                job.session.queue.append(job)
                self._advance(job.session)
            elif not job.future.set_running_or_notify_cancel():
                self._outcomes.append(Outcome(job))
            elif isinstance(job, Open):
                self._attempt(job, lambda job=job: self._open(job.channels))
            elif isinstance(job, Predict):
                self._next_batch(job)
        self._settle()

    def tick(self) -> None:
        """Run one token of every stream that has one, then chunks up to the budget."""
        with np.errstate(all="ignore"):  # rows that are not finite are found by checks
            self._run(self._schedule.next())

    def _run(self, tick: Tick) -> None:
        self._recorder.ticks += 1
        steps = [(step, self._stepping[step.item]) for step in tick.steps]
        reads, self._reads = self._reads, []
        self._end(self._streams.run(steps, reads))
        chunks = [(chunk, self._chunking[chunk.item]) for chunk in tick.chunks]
        self._end(self._bulk.run(chunks))
        for _, job in chunks:
            if isinstance(job, Predict) and job.item in self._chunking and job.state is None:
                self._next_batch(job)

    def abort(self, error: KSSMError, unaccepted: Sequence[Job] = ()) -> None:
        """Fail every accepted job, and those that never got here."""
        for job in [*self._accepted, *unaccepted]:
            _resolve(Outcome(job, error=error))
        self._accepted.clear()

    def stats(self) -> EngineStats:
        """The counters now; may be called from any thread."""
        return self._recorder.stats(self._arena, self._admission.pending)

    def _advance(self, session: Session) -> None:
        """Start the session's next job; do all that need no tick."""
        while session.queue and not session.active:
            job = session.queue.popleft()
            started = job.future.set_running_or_notify_cancel()
            if isinstance(job, Release) or (isinstance(job, Control) and started):
                self._attempt(job, lambda job=job: job.action(job.session))
            elif not started:
                self._outcomes.append(Outcome(job))
            else:
                session.active = True
                self._begin(session, job)

    def _not_begun(self, job: Generate) -> Outcome | None:
        """The end of a generation that has nothing to do, or nothing to go on from."""
        if job.listener.cancelled.is_set():
            return Outcome(job, job.result("cancelled"))
        seen = self._arena.gather(job.session.rows.slots, ["position"])["position"]
        if float(seen.min()) > 0:
            return None
        message = "the session has no tokens yet to go on from"
        return Outcome(job, error=InvalidInputError(message, code="invalid_tokens"))

    def _begin(self, session: Session, job: SessionJob) -> None:
        if isinstance(job, Read):
            self._reads.append(job)
        elif isinstance(job, Generate) and (ended := self._not_begun(job)):
            session.active = False
            self._outcomes.append(ended)
        elif isinstance(job, Append):
            job.item = next(self._items)
            if job.stepwise:
                self._stepping[job.item] = job
                self._schedule.add_steps(job.item, job.tokens)
            else:
                self._chunking[job.item] = job
                self._schedule.add_bulk(job.item, job.tokens, job.session.channels)
        else:
            raise TypeError(f"unknown job {type(job).__name__}")

    def _next_batch(self, job: Predict) -> None:
        self._chunking.pop(job.item, None)
        job.item = next(self._items)
        self._chunking[job.item] = job
        batch = job.batches[0]
        self._schedule.add_bulk(job.item, len(job.series[batch[0]][0]), len(batch))

    def _end(self, outcomes: Iterable[Outcome]) -> None:
        """Take ended jobs off the schedule, start what waited for them and settle."""
        for outcome in outcomes:
            self._outcomes.append(outcome)
            job = outcome.job
            if isinstance(job, Append | Predict):
                self._stepping.pop(job.item, None)
                self._chunking.pop(job.item, None)
                self._schedule.discard(job.item)
            if isinstance(job, SessionJob):
                self._note_fault(job.session, outcome.error)
                job.session.active = False
                self._advance(job.session)
        self._settle()

    def _note_fault(self, session: Session, error: KSSMError | None) -> None:
        if isinstance(error, NumericalError):
            self._recorder.faults += 1
            self._quarantine(session, True)

    def _quarantine(self, session: Session, quarantined: bool) -> None:
        self._recorder.quarantined += quarantined - session.quarantined
        session.quarantined = quarantined

    def _settle(self) -> None:
        outcomes, self._outcomes = self._outcomes, []
        for lane in Lane:
            cost = sum(outcome.job.cost for outcome in outcomes if outcome.job.lane is lane)
            self._admission.settle(lane, cost)
        for outcome in outcomes:
            _resolve(outcome)
            del self._accepted[outcome.job]

    def _attempt(self, job: Job, action: Callable[[], Any]) -> None:
        result = attempt(action)
        if isinstance(result, KSSMError):
            self._outcomes.append(Outcome(job, error=result))
        else:
            self._outcomes.append(Outcome(job, result))

    def _open(self, channels: int) -> int:
        """Create a session; its key."""
        session = Session(next(self._keys), self._arena.allocate(channels))
        self._sessions[session.key] = session
        self._recorder.sessions += 1
        return session.key

    def fork(self, session: Session) -> int:
        """Open a session with a copy of this one's state; returns its key."""
        state = self._arena.whole(session.rows.slots)
        key = self._open(session.channels)
        self._arena.write(self._sessions[key].rows.slots, state)
        return key

    def reset(self, session: Session) -> None:
        """Make the session's rows fresh."""
        self._arena.reset(session.rows)
        self._quarantine(session, False)

    def release(self, session: Session) -> None:
        """Free the session's rows."""
        self._arena.free(session.rows)
        self._quarantine(session, False)
        self._recorder.sessions -= 1

    def export(self, session: Session) -> dict[str, NDArray[Any]]:
        """The session's state on the host, [channels, ...] per entry."""
        state = self._arena.whole(session.rows.slots)
        return {name: self._executor.fetch(tensor) for name, tensor in state.items()}

    def load(self, session: Session, tensors: dict[str, NDArray[Any]]) -> None:
        """Overwrite the session's state with checked tensors."""
        self._arena.write(session.rows.slots, self._executor.stage(tensors))
        self._quarantine(session, False)


def _resolve(outcome: Outcome) -> None:
    """Tell the caller; one who settled or cancelled the future himself is left alone."""
    future = outcome.job.future
    if future.done():
        return
    try:
        if outcome.error is not None:
            future.set_exception(outcome.error)
        else:
            future.set_result(outcome.value)
    except InvalidStateError:
        return
