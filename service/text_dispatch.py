"""The messages of language sessions on one connection."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from kssm.runtime import GenerationResult
from service import messages, wire
from service.exchange import Exchange, Payload
from service.lanes import resolved
from service.sessions import Reply
from service.texts import TextManager


class TextDispatcher:
    """Hands them to the text manager; tokens leave through ``emit`` as they come.

    A connection's generations end with it: nobody is left to hear them.
    """

    def __init__(self, texts: TextManager, tenant: str, emit: Callable[[Payload], None]) -> None:
        self._texts = texts
        self._tenant = tenant
        self._emit = emit
        self._running: set[threading.Event] = set()

    def accept(self, message: messages.TextControl) -> Exchange:
        """Begin what ``message`` asks for."""
        match message:
            case messages.StreamTokens():
                return self._append(message)
            case messages.StreamGenerate():
                return self._generate(message)
            case messages.StreamCancel():
                return self._cancel(message)

    def close(self) -> None:
        """The connection has ended."""
        for flag in self._running:
            flag.set()

    def _append(self, message: messages.StreamTokens) -> Exchange:
        def encode(reply: Reply) -> Payload:
            return wire.encode_ack(message.type, message.request_id, message.session, reply.seq)

        future = self._texts.append(self._tenant, message.session, message)
        return Exchange(future, encode, message.session, message.seq, message.request_id)

    def _generate(self, message: messages.StreamGenerate) -> Exchange:
        flag = threading.Event()
        vocabulary = self._texts.vocabulary
        decode = None if vocabulary is None else vocabulary.decoder()

        def hear(number: int, token: int) -> None:
            text = None if decode is None else decode(token)
            self._emit(wire.encode_token(message.session, number, token, text, message.request_id))

        def encode(result: GenerationResult) -> Payload:
            text = None if vocabulary is None else vocabulary.text(result.tokens)
            return wire.encode_generation(message.session, result, text, message.request_id)

        future = self._texts.generate(self._tenant, message.session, message, flag, hear)
        self._running.add(flag)
        future.add_done_callback(lambda _: self._running.discard(flag))
        request_id = message.request_id
        return Exchange(future, encode, message.session, request_id=request_id, streamed=True)

    def _cancel(self, message: messages.StreamCancel) -> Exchange:
        self._texts.cancel(self._tenant, message.session)
        encode = partial(_ack, message)
        return Exchange(resolved(None), encode, message.session, request_id=message.request_id)


def _ack(message: messages.StreamCancel, _: None) -> Payload:
    return wire.encode_ack(message.type, message.request_id, message.session)
