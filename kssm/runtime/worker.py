"""The engine without its thread: sessions, ticks and the settling of jobs.

Everything here runs on one thread. A tick is three verbs: schedule (``Schedule.next``), run
(``Streams`` and ``Bulk``) and postprocess (``_settle``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import InvalidStateError
from functools import partial
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
        schedule: Schedule[Any],
        admission: Admission,
        sessions: dict[int, Session],
    ) -> None:
        self._arena: Arena = executor.arena
        self._executor = executor
        self._schedule = schedule
        self._admission = admission
        self._sessions = sessions
        self._keys = count(1)
        self._accepted: dict[Job, None] = {}
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
            if not isinstance(job, SessionJob):
                self._start_apart(job)
            elif job.session.active:
                job.session.queue.append(job)
            else:
                self._start(job)
        self._settle()

    def tick(self) -> None:
        """Run one token of every stream that has one, then chunks up to the budget."""
        with np.errstate(all="ignore"):  # rows that are not finite are found by checks
            self._run(self._schedule.next())

    def _run(self, tick: Tick[Any]) -> None:
        self._recorder.ticks += 1
        reads, self._reads = self._reads, []
        self._end(self._streams.run(tick.steps, reads))
        if not tick.chunks:
            return
        self._end(self._bulk.run(tick.chunks))
        for job, _, _ in tick.chunks:
            if isinstance(job, Predict) and job in self._accepted and job.state is None:
                self._next_batch(job)

    def abort(self, error: KSSMError, unaccepted: Sequence[Job] = ()) -> None:
        """Fail every accepted job, and those that never got here."""
        for job in [*self._accepted, *unaccepted]:
            _resolve(Outcome(job, error=error))
        self._accepted.clear()

    def stats(self) -> EngineStats:
        """The counters now; may be called from any thread."""
        return self._recorder.stats(self._arena, self._admission.pending)

    def _start_apart(self, job: Job) -> None:
        """Start a job that concerns no session."""
        if not job.future.set_running_or_notify_cancel():
            self._outcomes.append(Outcome(job))
        elif isinstance(job, Open):
            self._attempt(job, partial(self._open, job.channels))
        elif isinstance(job, Predict):
            self._next_batch(job)

    def _advance(self, session: Session) -> None:
        """Start the session's next job; do all that need no tick."""
        while session.queue and not session.active:
            self._start(session.queue.popleft())

    def _start(self, job: SessionJob) -> None:
        """Do what needs no tick, and put the rest on the schedule."""
        if not job.future.set_running_or_notify_cancel() and not isinstance(job, Release):
            self._outcomes.append(Outcome(job))
        elif isinstance(job, Control):
            self._attempt(job, partial(job.action, job.session))
        elif isinstance(job, Generate) and (ended := self._not_begun(job)):
            self._outcomes.append(ended)
        else:
            job.session.active = True
            self._begin(job)

    def _not_begun(self, job: Generate) -> Outcome | None:
        """The end of a generation that has nothing to do, or nothing to go on from."""
        if job.listener.cancelled.is_set():
            return Outcome(job, job.result("cancelled"))
        seen = self._arena.gather(job.session.rows.slots, ["position"])["position"]
        if float(seen.min()) > 0:
            return None
        message = "the session has no tokens yet to go on from"
        return Outcome(job, error=InvalidInputError(message, code="invalid_tokens"))

    def _begin(self, job: SessionJob) -> None:
        if isinstance(job, Read):
            self._reads.append(job)
        elif not isinstance(job, Append):
            raise TypeError(f"unknown job {type(job).__name__}")
        elif job.stepwise:
            self._schedule.add_steps(job, job.tokens)
        else:
            self._schedule.add_bulk(job, job.tokens, job.session.channels)

    def _next_batch(self, job: Predict) -> None:
        batch = job.batches[0]
        self._schedule.add_bulk(job, len(job.series[batch[0]][0]), len(batch))

    def _end(self, outcomes: Iterable[Outcome]) -> None:
        """Take ended jobs off the schedule, start what waited for them and settle."""
        for outcome in outcomes:
            self._schedule.discard(outcome.job)
            self._outcomes.append(outcome)
            job, _, error = outcome
            if isinstance(job, SessionJob):
                if error is not None:
                    self._note_fault(job.session, error)
                job.session.active = False
                if job.session.queue:
                    self._advance(job.session)
        self._settle()

    def _note_fault(self, session: Session, error: KSSMError) -> None:
        if isinstance(error, NumericalError):
            self._recorder.faults += 1
            self._quarantine(session, True)

    def _quarantine(self, session: Session, quarantined: bool) -> None:
        self._recorder.quarantined += quarantined - session.quarantined
        session.quarantined = quarantined

    def _settle(self) -> None:
        if not self._outcomes:
            return
        outcomes, self._outcomes = self._outcomes, []
        for lane in Lane:
            cost = sum([job.cost for job, _, _ in outcomes if job.lane is lane])
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
    try:
        if outcome.error is not None:
            future.set_exception(outcome.error)
        else:
            future.set_result(outcome.value)
    except InvalidStateError:
        return
