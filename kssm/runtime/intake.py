"""Where callers' threads leave their jobs, and where the device thread waits for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from kssm.errors import CapacityError, KSSMError, NotFoundError
from kssm.runtime.admission import Admission
from kssm.runtime.jobs import Job, Release, Session, SessionJob


class Intake:
    """Jobs on their way to the device thread, until it is closed; every method is thread-safe.

    ``sessions`` are those that take jobs. ``died``: what the closed intake says is the device
    thread's fault.
    """

    def __init__(self, max_pending: int) -> None:
        self.admission = Admission(max_pending)
        self.sessions: dict[int, Session] = {}
        self.died = False
        self._condition = threading.Condition(threading.Lock())
        self._incoming: list[Job] = []
        self._taken: list[Job] = []
        self._closed = False
        self._drain = True

    @property
    def closed(self) -> bool:
        """Whether jobs are refused."""
        return self._closed

    def session(self, key: int) -> Session:
        """NotFoundError ``session_not_found`` when there is none."""
        session = self.sessions.get(key)
        if session is None:
            raise NotFoundError("there is no such session", code="session_not_found")
        return session

    def submit(self, request: Callable[[], Job]) -> Future[Any]:
        """The future of the job that ``request`` makes, or one that holds its KSSMError."""
        try:
            job = request()
            self.admission.admit(job.lane, job.cost)
            self._enqueue(job)
        except KSSMError as error:
            refused = Future[Any]()
            refused.set_exception(error)
            return refused
        return job.future

    def take(self, busy: bool) -> list[Job] | None:
        """What has come since the last call; None: the thread is to stop.

        Waits for a job unless the thread is ``busy`` with earlier ones.
        """
        with self._condition:
            while not (self._incoming or busy or self._closed):
                self._condition.wait()
            if self._closed and not (self._drain and (self._incoming or busy)):
                return None
            self._taken, self._incoming = self._incoming, []
            return self._taken

    def accepted(self) -> None:
        """The jobs taken last are somebody else's now."""
        self._taken = []

    def close(self, drain: bool = True) -> None:
        """Refuse new jobs; those that came before are still taken if ``drain``."""
        with self._condition:
            self._closed = True
            self._drain = self._drain and drain
            self._condition.notify()

    def abandon(self) -> list[Job]:
        """Close, and hand out the jobs that nobody accepted."""
        with self._condition:
            self._closed = True
            left, self._taken, self._incoming = self._taken + self._incoming, [], []
        return left

    def refusal(self) -> KSSMError:
        """Why a closed intake takes nothing."""
        if self.died:
            return KSSMError("the engine stopped unexpectedly", code="internal")
        return CapacityError("the engine is shutting down", code="draining")

    def _enqueue(self, job: Job) -> None:
        with self._condition:
            try:
                self._check(job)
            except KSSMError:
                self.admission.settle(job.lane, job.cost)
                raise
            if not self._incoming:  # the thread waits only while there is nothing
                self._condition.notify()
            self._incoming.append(job)

    def _check(self, job: Job) -> None:
        if self._closed:
            raise self.refusal()
        if isinstance(job, SessionJob):
            self.session(job.session.key)
            if isinstance(job, Release):
                del self.sessions[job.session.key]
