"""One WebSocket connection: messages in, exactly one answer each out, in the same order.

The reader hands each message over at once and goes on; the writer waits for the answers in turn.
So many frames are under way together while their answers keep their order. The reader stops
reading, and the peer feels it through TCP, when too much is unanswered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, assert_never

from kssm.errors import CapacityError, KSSMError
from service import schemas, wire
from service.lanes import failed, resolved
from service.residency import session_not_found
from service.sessions import Reply, Status

if TYPE_CHECKING:
    from service.core import Service

BYTES_IN_FLIGHT: Final = 8
"""Unanswered bytes a connection may have, in messages of the greatest size."""
GOAWAY_PATIENCE_S: Final = 1.0
RESTART: Final = 1012

Payload = str | bytes


@dataclass(frozen=True, slots=True)
class Binding:
    """A session as this connection addresses it."""

    session: str
    handle: int
    attachment: int
    binary: bool


@dataclass(slots=True, eq=False)
class Exchange:
    """A message and what is needed to answer it."""

    future: asyncio.Future[Any]
    encode: Callable[[Any], Payload]
    session: str | None = None
    seq: int | None = None
    request_id: str | None = None
    frame: bool = False
    size: int = 0
    began: float = 0.0


class Connection:
    """Serves one peer through ``receive`` (None at its end), ``send`` and ``close``.

    The last two never raise, also when the peer has gone.
    """

    def __init__(
        self,
        service: Service,
        tenant: str,
        receive: Callable[[], Awaitable[Payload | None]],
        send: Callable[[Payload], Awaitable[None]],
        close: Callable[[int, str], Awaitable[None]],
    ) -> None:
        self._service = service
        self._manager = service.manager
        self._tenant = tenant
        self._receive = receive
        self._send = send
        self._close = close
        self._limit = service.settings.max_in_flight
        self._max_bytes = BYTES_IN_FLIGHT * service.settings.max_message_bytes
        self._queue: asyncio.Queue[Exchange] = asyncio.Queue()
        self._unanswered = 0
        self._bytes = 0
        self._room = asyncio.Event()
        self._handles: dict[int, Binding] = {}
        self._bindings: dict[str, Binding] = {}
        self._next_handle = 1

    async def run(self) -> None:
        """Serve until the peer leaves; what it was promised is still applied, not answered."""
        reader = asyncio.create_task(self._read())
        writer = asyncio.create_task(self._write())
        try:
            done, _ = await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            reader.cancel()
            writer.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)
            while not self._queue.empty():
                self._queue.get_nowait().future.add_done_callback(_look_at)
                self._queue.task_done()

    async def goaway(self, time_left_s: float) -> None:
        """Announce the end; a peer that does not listen is not waited for."""
        try:
            async with asyncio.timeout(GOAWAY_PATIENCE_S):
                await self._send(wire.encode_goaway(time_left_s))
        except TimeoutError:
            return

    async def restart(self) -> None:
        """Close with the code that asks the peer to come back."""
        await self._close(RESTART, "the server is stopping")

    async def answered(self) -> None:
        """Wait until every message so far is answered."""
        await self._queue.join()

    async def _read(self) -> None:
        while (message := await self._next()) is not None:
            began = time.perf_counter()
            exchange = self._accept(message)
            exchange.began, exchange.size = began, len(message)
            self._unanswered += 1
            self._bytes += exchange.size
            self._queue.put_nowait(exchange)

    async def _next(self) -> Payload | None:
        while self._unanswered >= 2 * self._limit or self._bytes > self._max_bytes:
            self._room.clear()
            await self._room.wait()
        return await self._receive()

    async def _write(self) -> None:
        while True:
            exchange = await self._queue.get()
            try:
                await self._send(await self._answer(exchange))
            finally:
                self._unanswered -= 1
                self._bytes -= exchange.size
                self._room.set()
                self._queue.task_done()

    async def _answer(self, exchange: Exchange) -> Payload:
        try:
            answer = exchange.encode(await exchange.future)
        except Exception as error:  # noqa: BLE001 - every message is answered, whatever happened
            self._service.metrics.error(error.code if isinstance(error, KSSMError) else "internal")
            return wire.encode_error(error, exchange.session, exchange.seq, exchange.request_id)
        if exchange.frame:
            self._service.metrics.streamed(time.perf_counter() - exchange.began)
        return answer

    def _accept(self, message: Payload) -> Exchange:
        try:
            return self._take(message)
        except Exception as error:  # noqa: BLE001 - no message may cost the connection
            return Exchange(failed(error), _unused)

    def _take(self, message: Payload) -> Exchange:
        if isinstance(message, str):
            parsed = wire.parse_text(message)
        else:
            parsed = wire.parse_binary(message)
        if isinstance(parsed, wire.Rejected):
            return self._refuse(parsed.error, parsed)
        if self._unanswered >= self._limit:
            error = CapacityError(f"{self._limit} messages are unanswered")
            return self._refuse(error, _address(parsed))
        if isinstance(parsed, wire.Append):
            return self._append(parsed)
        return self._control(parsed)

    def _refuse(self, error: KSSMError, address: wire.Rejected) -> Exchange:
        binding = None if address.handle is None else self._handles.get(address.handle)
        session = binding.session if binding else address.session
        return Exchange(failed(error), _unused, session, address.seq, address.request_id)

    def _append(self, message: wire.Append) -> Exchange:
        session, attachment = message.session, None
        if message.handle is not None:
            binding = self._handles.get(message.handle)
            if binding is None:
                return self._refuse(session_not_found(), _address(message))
            session, attachment = binding.session, binding.attachment
        assert session is not None
        future = self._manager.append(self._tenant, session, message.frame, attachment)
        encode = partial(self._forecast, session, "frames.append", message.request_id)
        seq = message.frame.seq
        return Exchange(future, encode, session, seq, message.request_id, frame=True)

    def _control(self, message: schemas.Control) -> Exchange:
        request_id = message.request_id
        match message:
            case schemas.Keepalive():
                return Exchange(resolved(None), partial(_ack, message), request_id=request_id)
            case schemas.StreamCreate():
                future = self._manager.create(self._tenant, message)
                return Exchange(future, partial(self._welcome, message), request_id=request_id)
            case _:
                return self._session_control(message)

    def _session_control(
        self,
        message: schemas.StreamAttach
        | schemas.StreamForecast
        | schemas.StreamReset
        | schemas.StreamClose,
    ) -> Exchange:
        manager, address = self._manager, (self._tenant, message.session)
        future: asyncio.Future[Any]
        encode: Callable[[Any], Payload]
        match message:
            case schemas.StreamAttach():
                future, encode = manager.attach(*address), partial(self._welcome, message)
            case schemas.StreamForecast():
                future = manager.forecast(*address, message.horizon, message.quantiles)
                encode = partial(_forecast_text, message)
            case schemas.StreamReset():
                future, encode = manager.reset(*address), partial(_ack, message)
            case schemas.StreamClose():
                future, encode = manager.delete(*address), partial(self._closed, message)
            case _:
                assert_never(message)
        return Exchange(future, encode, message.session, request_id=message.request_id)

    def _forecast(self, session: str, of: str, request_id: str | None, reply: Reply) -> Payload:
        if reply.result is None:
            return wire.encode_ack(of, request_id, session, reply.seq)
        binding = self._bindings.get(session)
        if binding is not None and binding.binary:
            return wire.encode_forecast_binary(binding.handle, reply.seq, reply.result)
        return wire.encode_forecast(session, reply.seq, reply.result, request_id)

    def _closed(self, message: schemas.StreamClose, _: None) -> Payload:
        binding = self._bindings.pop(message.session, None)
        if binding is not None:
            del self._handles[binding.handle]
        return _ack(message, None)

    def _welcome(
        self, message: schemas.StreamCreate | schemas.StreamAttach, status: Status
    ) -> Payload:
        binding = self._bind(status, message.encoding == "binary")
        body: dict[str, object] = {
            "type": "session.created",
            "session": status.id,
            "handle": binding.handle,
            "model": self._manager.model,
            "channels": status.settings.channels,
            "horizon": status.settings.horizon,
            "quantiles": status.settings.quantiles,
            "encoding": message.encoding,
            "next_seq": status.next_seq,
            "max_in_flight": self._limit,
        }
        if isinstance(message, schemas.StreamAttach):
            body["attached"] = True
        return wire.encode(body, message.request_id)

    def _bind(self, status: Status, binary: bool) -> Binding:
        known = self._bindings.get(status.id)
        handle = known.handle if known else self._next_handle
        if known is None:
            self._next_handle += 1
        binding = Binding(status.id, handle, status.attachment, binary)
        self._handles[handle] = self._bindings[status.id] = binding
        return binding


def _address(message: wire.Append | schemas.Control) -> wire.Rejected:
    """Whom a message that is refused was for."""
    error = session_not_found()
    if isinstance(message, wire.Append):
        seq = message.frame.seq
        return wire.Rejected(error, message.session, message.handle, seq, message.request_id)
    session = getattr(message, "session", None)
    return wire.Rejected(error, session, request_id=message.request_id)


def _ack(message: schemas.Keepalive | schemas.StreamReset | schemas.StreamClose, _: Any) -> Payload:
    session = None if isinstance(message, schemas.Keepalive) else message.session
    return wire.encode_ack(message.type, message.request_id, session)


def _forecast_text(message: schemas.StreamForecast, reply: Reply) -> Payload:
    assert reply.result is not None
    return wire.encode_forecast(message.session, reply.seq, reply.result, message.request_id)


def _unused(_: Any) -> Payload:
    raise AssertionError("a refused message has no result")


def _look_at(future: asyncio.Future[Any]) -> None:
    """Nobody is left to answer; an error of the future is not worth a warning."""
    if not future.cancelled():
        future.exception()
