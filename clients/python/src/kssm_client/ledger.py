"""One session's unanswered calls, their order and their numbers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from kssm_client.errors import ConflictError, KSSMClientError, ReplyLostError
from kssm_client.events import Failed, Result, Succeeded
from kssm_client.replies import Created
from kssm_client.types import SessionInfo
from kssm_client.wire import Frame, Message, binary_version, encode_control

REPLY_VALUES_KEPT = 131_072  # forecast values that a server keeps for a session's duplicates


@dataclass(slots=True, eq=False)
class Job:
    """One call: a frame, or another message whole, which may be what opens the session."""

    ticket: int
    kind: str
    frame: Frame | None = None
    text: str = ""
    opens: bool = False


@dataclass(slots=True, eq=False)
class Flight:
    """A message on the wire; ``job`` is None for the attach that resumes a session."""

    ledger: Ledger
    job: Job | None
    seq: int | None = None
    withdrawn: bool = False  # it will be sent again, so its reply does not count


@dataclass(slots=True, eq=False)
class Ledger:
    """The oldest unanswered frame has number ``base``, each later one the next number.

    Frames are sent in runs; every other message is sent alone, when all before it is answered.
    """

    key: int
    jobs: deque[Job] = field(default_factory=deque[Job])  # unanswered, oldest first
    sent: int = 0  # how many of them are on the wire
    base: int = 0
    reached: int = 0  # one past the highest number that the server may have applied
    applied: int = 0  # the server's next number when it was last asked
    withdrawn: int = 0  # replies still to come for withdrawn messages
    info: SessionInfo | None = None
    handle: int | None = None  # None: not attached on this connection
    attaching: bool = False
    may_advance: bool = False  # withdrawn messages may have been applied all the same
    waiting: bool = False  # the server refused for now
    attempt: int = 0
    rebase: bool = False  # frames were given up: take the server's word for `base`
    failure: KSSMClientError | None = None

    def may_send(self, window: int) -> bool:
        """Whether the next job may go out, with at most ``window`` unanswered frames."""
        if self.waiting or self.attaching or self.withdrawn:
            return False
        if self.sent >= min(len(self.jobs), window, self.recoverable):
            return False
        frames = self.jobs[0].frame is not None and self.jobs[self.sent].frame is not None
        return frames or self.sent == 0

    @property
    def recoverable(self) -> int:
        """How many unanswered frames' forecasts the server still has after a reconnection."""
        if self.info is None:
            return 1
        size = self.info.channels * self.info.horizon * len(self.info.quantiles)
        return max(1, REPLY_VALUES_KEPT // size)

    def next_message(self) -> tuple[Message, Flight]:
        """Put the next job on the wire, or first the attach that it needs."""
        job = self.jobs[self.sent]
        if job.opens:
            return job.text, self._launch(job)
        assert self.info is not None
        if self.handle is None:
            self.attaching = True
            return self._attach_message(self.info), Flight(self, None)
        if job.frame is None:
            return job.text, self._launch(job)
        seq = self.base + self.sent
        self.reached = max(self.reached, seq + 1)
        return job.frame.encode(self.info.session, self.handle, seq), self._launch(job, seq)

    def _attach_message(self, info: SessionInfo) -> str:
        return encode_control(
            "session.attach",
            session=info.session,
            encoding=info.encoding,
            binary_version=binary_version(info.encoding),
        )

    def _launch(self, job: Job, seq: int | None = None) -> Flight:
        self.sent += 1
        return Flight(self, job, seq)

    def adopt(self, reply: Created) -> None:
        """The session is ready on this connection."""
        self.attaching = False
        self.attempt = 0
        self.handle = reply.handle
        self.info = reply.info
        self.applied = reply.info.next_seq
        if self.rebase or self.jobs[0].opens:
            self.base = self.reached = self.applied
            self.rebase = False

    def conflict(self) -> ConflictError | None:
        """Why the server's next number cannot be ours, if it cannot."""
        if self.base <= self.applied <= self.reached:
            return None
        return ConflictError(
            f"the server expects frame {self.applied}, this client holds frames {self.base} "
            f"to {self.reached}",
            "frames_lost" if self.applied < self.base else "session_taken",
            details={"expected_seq": self.applied},
        )

    def finish(self, job: Job, result: Result) -> Succeeded | Failed:
        """The oldest job is answered; a frame without a result was applied long ago."""
        self.jobs.popleft()
        self.sent -= 1
        self.attempt = 0
        if job.frame is None:
            return Succeeded(job.ticket, result)
        self._pass_number()
        if result is None:
            return Failed(job.ticket, ReplyLostError("the frame was applied, its forecast is gone"))
        return Succeeded(job.ticket, result)

    def finish_failed(self, job: Job, error: KSSMClientError) -> Failed:
        """The oldest frame was applied, and its number used up, but not answered."""
        self.finish(job, None)
        return Failed(job.ticket, error)

    def _pass_number(self) -> None:
        self.base += 1
        self.applied = max(self.applied, self.base)
        self.reached = max(self.reached, self.base)

    def withdraw(self, refused: Flight, flights: Iterable[Flight]) -> None:
        """The oldest message was refused, and so will be all behind it: they go again.

        Not so behind a refused duplicate: the server may take what follows. It keeps its
        number then and is a duplicate itself the next time.
        """
        for flight in flights:
            if flight.ledger is self and not flight.withdrawn:
                flight.withdrawn = True
                self.withdrawn += 1
        self.attaching = False
        self.sent = 0
        self.may_advance = refused.seq is not None and refused.seq < self.applied
        if refused.job is not None:
            self.reached = max(self.base, self.applied)

    def settle_withdrawn(self, flight: Flight, *, refused: bool) -> bool:
        """The reply to a withdrawn message came; False if it cannot be true."""
        self.withdrawn -= 1
        if refused:
            return True
        if flight.seq is None or not (self.may_advance or flight.seq < self.applied):
            return False
        self.applied = max(self.applied, flight.seq + 1)
        self.reached = max(self.reached, self.applied)
        return True

    def drop_first(self, error: KSSMClientError) -> list[Failed]:
        """Fail the oldest job, which is not on the wire; the next one takes its number.

        Unless the server has applied it: then the number is used up. And while we are not
        attached nobody knows which numbers are: everything is failed.
        """
        if self.handle is None:
            self.rebase = True
            return self.drop_all(error)
        self.attempt = 0
        job = self.jobs.popleft()
        if job.frame is not None and self.base < self.applied:
            self._pass_number()
        return [Failed(job.ticket, error)]

    def drop_all(self, error: KSSMClientError) -> list[Failed]:
        """Fail every job."""
        failed = [Failed(job.ticket, error) for job in self.jobs]
        self.jobs.clear()
        self.sent = 0
        return failed

    def detach(self) -> None:
        """The connection is gone."""
        self.handle = None
        self.attaching = self.waiting = False
        self.sent = self.withdrawn = 0
