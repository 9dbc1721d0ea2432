"""From a message to the future that answers it, and from the result to the answer's bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, assert_never

from kssm.errors import CapacityError, KSSMError
from service import messages, wire
from service.exchange import Exchange, Payload
from service.lanes import failed, resolved
from service.manager import SessionManager
from service.residency import session_not_found
from service.sessions import Reply, Status
from service.text_dispatch import TextDispatcher


@dataclass(frozen=True, slots=True)
class Binding:
    """A session as this connection addresses it; ``binary`` is the version of its answers."""

    session: str
    handle: int
    attachment: int
    binary: int | None


class Dispatcher:
    """Knows the sessions one connection addresses, and hands its messages to the managers."""

    def __init__(
        self, manager: SessionManager, texts: TextDispatcher, tenant: str, limit: int
    ) -> None:
        self._manager = manager
        self._texts = texts
        self._tenant = tenant
        self._limit = limit
        self._handles: dict[int, Binding] = {}
        self._bindings: dict[str, Binding] = {}
        self._next_handle = 1

    def accept(self, message: Payload, unanswered: int) -> Exchange:
        """Begin what ``message`` asks for; never raises. ``unanswered`` messages are before it."""
        try:
            return self._take(message, unanswered)
        except Exception as error:  # noqa: BLE001 - no message may cost the connection
            return Exchange(failed(error), _unused)

    def _take(self, message: Payload, unanswered: int) -> Exchange:
        if isinstance(message, str):
            parsed = wire.parse_text(message)
        else:
            parsed = wire.parse_binary(message)
        if isinstance(parsed, wire.Rejected):
            return self._refuse(parsed.error, parsed)
        if unanswered >= self._limit:
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

    def _control(self, message: messages.Control) -> Exchange:
        request_id = message.request_id
        match message:
            case messages.Keepalive():
                return Exchange(resolved(None), partial(_ack, message), request_id=request_id)
            case messages.StreamCreate():
                future = self._manager.create(self._tenant, message)
                return Exchange(future, partial(self._welcome, message), request_id=request_id)
            case messages.StreamTokens() | messages.StreamGenerate() | messages.StreamCancel():
                return self._texts.accept(message)
            case _:
                return self._session_control(message)

    def _session_control(
        self,
        message: messages.StreamAttach
        | messages.StreamForecast
        | messages.StreamReset
        | messages.StreamClose,
    ) -> Exchange:
        manager, address = self._manager, (self._tenant, message.session)
        future: asyncio.Future[Any]
        encode: Callable[[Any], Payload]
        match message:
            case messages.StreamAttach():
                future, encode = manager.attach(*address), partial(self._welcome, message)
            case messages.StreamForecast():
                future = manager.forecast(*address, message.horizon, message.quantiles)
                encode = partial(_forecast_text, message)
            case messages.StreamReset():
                future, encode = manager.reset(*address), partial(_ack, message)
            case messages.StreamClose():
                future, encode = manager.delete(*address), partial(self._closed, message)
            case _:
                assert_never(message)
        return Exchange(future, encode, message.session, request_id=message.request_id)

    def _forecast(self, session: str, of: str, request_id: str | None, reply: Reply) -> Payload:
        if reply.result is None:
            return wire.encode_ack(of, request_id, session, reply.seq)
        binding = self._bindings.get(session)
        if binding is not None and binding.binary is not None:
            handle, version = binding.handle, binding.binary
            return wire.encode_forecast_binary(handle, reply.seq, reply.result, version)
        return wire.encode_forecast(session, reply.seq, reply.result, request_id)

    def _closed(self, message: messages.StreamClose, _: None) -> Payload:
        binding = self._bindings.pop(message.session, None)
        if binding is not None:
            del self._handles[binding.handle]
        return _ack(message, None)

    def _welcome(
        self, message: messages.StreamCreate | messages.StreamAttach, status: Status
    ) -> Payload:
        binary = message.binary_version if message.encoding == "binary" else None
        binding = self._bind(status, binary)
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
        if binary is not None:
            body["binary_version"] = binary
        if self._manager.vocabulary is not None:
            body |= {"kind": "language", "vocab_size": self._manager.vocabulary.size}
        if isinstance(message, messages.StreamAttach):
            body["attached"] = True
        return wire.encode(body, message.request_id)

    def _bind(self, status: Status, binary: int | None) -> Binding:
        known = self._bindings.get(status.id)
        handle = known.handle if known else self._next_handle
        if known is None:
            self._next_handle += 1
        binding = Binding(status.id, handle, status.attachment, binary)
        self._handles[handle] = self._bindings[status.id] = binding
        return binding


def _address(message: wire.Append | messages.Control) -> wire.Rejected:
    """Whom a message that is refused was for."""
    error = session_not_found()
    if isinstance(message, wire.Append):
        seq = message.frame.seq
        return wire.Rejected(error, message.session, message.handle, seq, message.request_id)
    session, seq = getattr(message, "session", None), getattr(message, "seq", None)
    return wire.Rejected(error, session, seq=seq, request_id=message.request_id)


def _ack(
    message: messages.Keepalive | messages.StreamReset | messages.StreamClose, _: Any
) -> Payload:
    session = None if isinstance(message, messages.Keepalive) else message.session
    return wire.encode_ack(message.type, message.request_id, session)


def _forecast_text(message: messages.StreamForecast, reply: Reply) -> Payload:
    assert reply.result is not None
    return wire.encode_forecast(message.session, reply.seq, reply.result, message.request_id)


def _unused(_: Any) -> Payload:
    raise AssertionError("a refused message has no result")
