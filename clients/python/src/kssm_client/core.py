"""The client as a state machine: messages in, events out; no sockets, no clock, no event loop.

A shell (``aio``) feeds it what the connection does and sends what ``outgoing`` returns. What
makes resuming exact:

- A frame stays here until the server has answered it; its number is its place in that queue.
- The server answers in order, one reply a message, so replies are matched by position.
- After a reconnection every unanswered frame is sent again under its old number. Those the
  server had applied are duplicates to it: it repeats their forecasts and applies nothing.
- At most ``window`` frames of a session are unanswered at a time, no more than the number of
  replies the server keeps for duplicates, so no forecast is lost either.
- A refused frame leaves its number free, unless the error says it was applied all the same.
  Frames behind it were refused as a gap; they move up by one and are sent again.
- Other messages of a session are sent alone, so sending a reset twice is harmless.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy.typing as npt

from kssm_client.errors import ClientClosedError, KSSMClientError, ProtocolError, ServerError
from kssm_client.events import Draining, Event, Result, RetryLater, Succeeded
from kssm_client.ledger import Flight, Job, Ledger
from kssm_client.replies import (
    Ack,
    BinaryForecast,
    Created,
    GoAway,
    Reply,
    decode,
    shape_binary,
)
from kssm_client.types import Encoding, Forecast, SessionInfo, SessionOptions, Timestamp
from kssm_client.wire import (
    Message,
    binary_version,
    encode_control,
    encode_create,
    encode_frame,
)

DEFAULT_WINDOW = 32

_FATAL_CODES = frozenset({"session_not_found", "unauthorized", "seq_gap"})


class ClientCore:
    """Many sessions on one connection at a time. Every call returns at once.

    ``create`` … ``control`` return tickets; ``receive``, ``give_up`` and ``fail_all`` return
    the events that name them: one Succeeded or Failed a ticket.
    """

    def __init__(self, window: int = DEFAULT_WINDOW) -> None:
        self._window = window
        self._tickets = 0
        self._ledgers: dict[int, Ledger] = {}
        self._ready: dict[int, None] = {}  # keys of sessions with something to send, in turn
        self._flights: deque[Flight] = deque()
        self._by_handle: dict[int, Ledger] = {}
        self._connected = False
        self._draining = False
        self._max_in_flight = window

    @property
    def drained(self) -> bool:
        """Whether the server asked us to leave and has answered everything."""
        return self._draining and not self._flights

    def create(self, options: SessionOptions) -> tuple[int, int]:
        """Open a session: (its key here, ticket). TooLargeError if the prompt is too long."""
        message = encode_create(options)
        return self._open(Job(self._ticket(), "session.create", text=message, opens=True))

    def attach(self, session_id: str, encoding: Encoding | None = None) -> tuple[int, int]:
        """Take over an existing session: (its key here, ticket)."""
        message = encode_control(
            "session.attach",
            session=session_id,
            encoding=encoding,
            binary_version=binary_version(encoding),
        )
        return self._open(Job(self._ticket(), "session.attach", text=message, opens=True))

    def append(
        self, key: int, values: npt.ArrayLike, timestamps: Sequence[Timestamp] | None = None
    ) -> int:
        """Queue a frame of an open session; InvalidInputError if it cannot be encoded."""
        info = self.info(key)
        frame = encode_frame(values, info.channels, info.encoding, timestamps)
        return self._queue(key, Job(self._ticket(), "frames.append", frame=frame))

    def control(self, key: int, kind: str, **fields: object) -> int:
        """Queue ``forecast.create``, ``session.reset`` or ``session.close``.

        InvalidInputError if a field cannot be encoded.
        """
        text = encode_control(kind, session=self.info(key).session, **fields)
        return self._queue(key, Job(self._ticket(), kind, text=text))

    def info(self, key: int) -> SessionInfo:
        """An open session's settings; raises what ended it if it has ended."""
        ledger = self._ledgers.get(key)
        if ledger is None or ledger.info is None:
            raise ClientClosedError("the session is not open")
        if ledger.failure is not None:
            raise ledger.failure
        return ledger.info

    # What the connection does.

    def connected(self) -> None:
        """A new connection is ready."""
        self._connected = True
        self._draining = False

    def disconnected(self) -> None:
        """The connection is gone; what was not answered will be sent again on the next."""
        self._connected = False
        self._flights.clear()
        self._by_handle.clear()
        for ledger in self._ledgers.values():
            ledger.detach()
            if ledger.jobs:
                self._ready[ledger.key] = None

    def outgoing(self) -> list[Message]:
        """The messages to send now, in order."""
        messages: list[Message] = []
        if not self._connected or self._draining:
            return messages
        for key in list(self._ready):
            if not self._has_room():
                break
            del self._ready[key]
            self._pump(self._ledgers[key], messages)
        return messages

    def receive(self, message: Message) -> Sequence[Event]:
        """Take one message of the server. ProtocolError: the connection is unusable."""
        reply = decode(message)
        if isinstance(reply, GoAway):
            self._draining = True
            return [Draining(reply.time_left_s)]
        if not self._flights:
            raise ProtocolError(f"unexpected {type(reply).__name__} from the server")
        flight = self._flights.popleft()
        ledger = flight.ledger
        self._ready.setdefault(ledger.key)
        if flight.withdrawn:
            return self._ignored(flight, reply)
        if isinstance(reply, ServerError):
            return self._refused(flight, reply)
        if flight.job is None:
            return self._resumed(ledger, reply)
        return self._answered(flight, flight.job, reply)

    def retry(self, key: int) -> None:
        """Send a session's refused message again."""
        ledger = self._ledgers.get(key)
        if ledger is not None:
            ledger.waiting = False
            self._ready.setdefault(key)

    def give_up(self, key: int, error: KSSMClientError) -> Sequence[Event]:
        """Fail the message a session waits to retry, and go on with the next."""
        ledger = self._ledgers.get(key)
        if ledger is None or not ledger.waiting:
            return []
        self.retry(key)
        failed = ledger.drop_first(error)
        if ledger.info is None:
            self._forget(ledger)
        return failed

    def fail_all(self, error: KSSMClientError) -> Sequence[Event]:
        """End the connection and fail everything unanswered; open sessions stay usable."""
        self.disconnected()
        events: list[Event] = []
        for ledger in list(self._ledgers.values()):
            events += ledger.drop_all(error)
            ledger.rebase = True
            if ledger.info is None:
                self._forget(ledger)
        return events

    def _ticket(self) -> int:
        self._tickets += 1
        return self._tickets

    def _open(self, job: Job) -> tuple[int, int]:
        self._ledgers[job.ticket] = Ledger(key=job.ticket)
        return job.ticket, self._queue(job.ticket, job)

    def _queue(self, key: int, job: Job) -> int:
        self._ledgers[key].jobs.append(job)
        self._ready.setdefault(key)
        return job.ticket

    def _forget(self, ledger: Ledger) -> None:
        self._ledgers.pop(ledger.key, None)
        self._ready.pop(ledger.key, None)

    def _has_room(self) -> bool:
        return len(self._flights) < self._max_in_flight

    def _pump(self, ledger: Ledger, messages: list[Message]) -> None:
        while ledger.may_send(self._window):
            if not self._has_room():
                self._ready.setdefault(ledger.key)
                return
            message, flight = ledger.next_message()
            messages.append(message)
            self._flights.append(flight)

    def _ignored(self, flight: Flight, reply: Reply) -> Sequence[Event]:
        refused = isinstance(reply, ServerError) and not reply.applied
        if not flight.ledger.settle_withdrawn(flight, refused=refused):
            raise ProtocolError("the server applied a frame behind one it refused")
        return []

    def _resumed(self, ledger: Ledger, reply: Reply) -> Sequence[Event]:
        if not isinstance(reply, Created):
            raise ProtocolError("session.attach was not answered with session.created")
        self._adopt(ledger, reply)
        conflict = ledger.conflict()
        return [] if conflict is None else self._fail(ledger, conflict)

    def _adopt(self, ledger: Ledger, reply: Created) -> None:
        ledger.adopt(reply)
        self._by_handle[reply.handle] = ledger
        self._max_in_flight = reply.max_in_flight

    def _answered(self, flight: Flight, job: Job, reply: Reply) -> Sequence[Event]:
        result = self._result(flight, job, reply)
        if job.kind == "session.close":
            self._forget(flight.ledger)
        return [flight.ledger.finish(job, result)]

    def _result(self, flight: Flight, job: Job, reply: Reply) -> Result:
        match reply:
            case Created() if job.opens:
                self._adopt(flight.ledger, reply)
                return reply.info
            case BinaryForecast() if job.frame is not None and reply.seq == flight.seq:
                return self._shaped(flight.ledger, reply)
            case Forecast() if job.frame is not None and reply.seq == flight.seq:
                return reply
            case Forecast() if job.kind == "forecast.create":
                return reply
            case Ack() if reply.of == job.kind:
                return None
            case _:
                raise ProtocolError(f"{type(reply).__name__} is no answer to {job.kind}")

    def _shaped(self, ledger: Ledger, reply: BinaryForecast) -> Forecast:
        if self._by_handle.get(reply.handle) is not ledger or ledger.info is None:
            raise ProtocolError(f"a reply for handle {reply.handle} is out of order")
        return shape_binary(reply, ledger.info)

    def _refused(self, flight: Flight, error: ServerError) -> Sequence[Event]:
        ledger, job = flight.ledger, flight.job
        if error.applied and job is not None:
            return [ledger.finish_failed(job, error)]
        ledger.withdraw(flight, self._flights)
        if error.retryable:
            ledger.waiting = True
            ledger.attempt += 1
            return [RetryLater(ledger.key, ledger.attempt, error)]
        if error.code == "session_not_found" and ledger.jobs[0].kind == "session.close":
            self._forget(ledger)
            return [Succeeded(ledger.jobs.popleft().ticket, None)]
        if job is None or error.code in _FATAL_CODES:
            return self._fail(ledger, error)
        failed = ledger.drop_first(error)
        if ledger.info is None:
            self._forget(ledger)
        return failed

    def _fail(self, ledger: Ledger, error: KSSMClientError) -> Sequence[Event]:
        """The session cannot go on: fail its calls, now and later."""
        ledger.failure = error
        if ledger.info is None:
            self._forget(ledger)
        return ledger.drop_all(error)
