"""Text from a language model: one session on a connection of its own.

Unlike streams of frames a text is not resumed by itself after a lost connection: what was
generated is in the session, and ``open_text(session=...)`` goes on with it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, Unpack, cast

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from kssm_client.address import DEFAULT_URL, parse_address
from kssm_client.errors import ConnectionFailedError, ProtocolError, error_from_body
from kssm_client.wire import encode_control

Tokens = str | Sequence[int]
"""Text (where the server has the model's tokenizer), or token ids."""


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token; ``text`` is what it adds, None where the server knows only ids."""

    index: int
    token: int
    text: str | None


@dataclass(frozen=True, slots=True)
class Generated:
    """A whole generation, and why it ended."""

    tokens: tuple[int, ...]
    text: str | None
    reason: Literal["length", "stop", "cancelled"]


class GenerateOptions(TypedDict, total=False):
    """How a language model goes on with a text; docs/protocol.md tells the server's defaults."""

    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    seed: int | None
    stop: Sequence[int | str]
    ignore_eos: bool


def plain(tokens: Tokens) -> str | list[int]:
    """As JSON has them."""
    return tokens if isinstance(tokens, str) else list(tokens)


def tokens_field(tokens: Tokens) -> dict[str, object]:
    """The field of a message that appends ``tokens``."""
    return {"text" if isinstance(tokens, str) else "tokens": plain(tokens)}


def token_from_body(body: Mapping[str, Any]) -> Token:
    """A ``token`` message."""
    return Token(int(body["index"]), int(body["token"]), body.get("text"))


def generated_from_body(body: Mapping[str, Any]) -> Generated:
    """A ``generation`` message."""
    return Generated(tuple(body["tokens"]), body.get("text"), body["reason"])


class TextSession:
    """One text. Made by ``open_text``; one call at a time."""

    def __init__(self, socket: ClientConnection, created: Mapping[str, Any]) -> None:
        self._socket = socket
        self._seq = int(created["next_seq"])
        self.id = str(created["session"])
        self.vocab_size = int(created["vocab_size"])
        self.last: Generated | None = None

    async def append(self, tokens: Tokens) -> None:
        """Add to the text; raises ServerError when the server refuses."""
        await self._ask("tokens.append", session=self.id, seq=self._seq, **tokens_field(tokens))
        self._seq += 1

    async def generate(
        self, max_tokens: int = 64, **options: Unpack[GenerateOptions]
    ) -> AsyncGenerator[Token, None]:
        """Let the model go on, token by token; ``last`` is the whole of it afterwards.

        Leaving the loop early (with ``aclosing``, or by closing the generator) cancels the rest.
        Raises ServerError when the server refuses.
        """
        await self._send("generate.create", session=self.id, max_tokens=max_tokens, **options)
        ended = False
        try:
            while (body := await self._receive())["type"] == "token":
                yield token_from_body(body)
            ended = True
            self.last = generated_from_body(body)
        except BaseException as error:
            ended = ended or not isinstance(error, GeneratorExit)
            raise
        finally:
            if not ended:
                await self._cancel()

    async def complete(self, max_tokens: int = 64, **options: Unpack[GenerateOptions]) -> Generated:
        """``generate`` to its end."""
        async with aclosing(self.generate(max_tokens, **options)) as tokens:
            async for _ in tokens:
                pass
        assert self.last is not None
        return self.last

    async def close(self) -> None:
        """Delete the session on the server."""
        await self._ask("session.close", session=self.id)

    async def _cancel(self) -> None:
        await self._send("generate.cancel", session=self.id)
        while (body := await self._receive())["type"] != "ack":
            if body["type"] == "generation":
                self.last = generated_from_body(body)

    async def _ask(self, kind: str, **fields: object) -> Mapping[str, Any]:
        await self._send(kind, **fields)
        return await self._receive()

    async def _send(self, kind: str, **fields: object) -> None:
        await _send(self._socket, encode_control(kind, **fields))

    async def _receive(self) -> Mapping[str, Any]:
        return await _receive(self._socket)


@asynccontextmanager
async def open_text(
    url: str = DEFAULT_URL,
    *,
    api_key: str | None = None,
    prompt: Tokens | None = None,
    session: str | None = None,
) -> AsyncGenerator[TextSession, None]:
    """A new text that begins with ``prompt``, or an existing ``session``; for ``async with``.

    The session stays on the server until it is closed or expires. Raises
    ConnectionFailedError, ServerError.
    """
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    try:
        socket = await open_socket(
            parse_address(url).stream, additional_headers=headers, compression=None
        )
    except InvalidStatus as error:
        status = error.response.status_code
        raise ConnectionFailedError(f"the server answered with status {status}") from error
    except (OSError, TimeoutError, WebSocketException) as error:
        raise ConnectionFailedError(f"cannot reach {url}: {error}") from error
    async with socket:
        if session is None:
            asked = encode_control("session.create", prompt=prompt)
        else:
            asked = encode_control("session.attach", session=session)
        await _send(socket, asked)
        created = await _receive(socket)
        if created.get("kind") != "language":
            if session is None:
                await _send(socket, encode_control("session.close", session=created["session"]))
                await _receive(socket)
            raise ProtocolError("the server's model is not a language model")
        yield TextSession(socket, created)


async def _send(socket: ClientConnection, message: str) -> None:
    try:
        await socket.send(message)
    except ConnectionClosed as error:
        raise ConnectionFailedError(f"the connection was lost: {error}") from error


async def _receive(socket: ClientConnection) -> Mapping[str, Any]:
    """The next message that answers something; an error is raised."""
    while True:
        try:
            body = cast("dict[str, Any]", json.loads(await socket.recv()))
        except ConnectionClosed as error:
            raise ConnectionFailedError(f"the connection was lost: {error}") from error
        if body["type"] == "error":
            raise error_from_body(body["error"])
        if body["type"] != "goaway":
            return body
