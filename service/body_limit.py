"""Refuses request bodies beyond a limit while they arrive, with or without a declared length."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kssm.errors import InvalidInputError


class BodyLimit:
    """ASGI middleware. Inside, reading too much raises ``InvalidInputError`` (413)."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        too_long = declared.isdecimal() and int(declared[:20]) > self._limit
        received = 0

        async def limited() -> Message:
            nonlocal received
            if too_long:
                raise self._error()
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise self._error()
            return message

        await self._app(scope, limited, send)

    def _error(self) -> InvalidInputError:
        message = f"a request body has at most {self._limit} bytes"
        return InvalidInputError(message, code="message_too_large")
