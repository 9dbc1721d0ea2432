"""The model server behind a real WebSocket, with faults on demand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from tests.client.model_server import ModelServer


@dataclass
class FakeServer:
    """Listens on a free port of 127.0.0.1."""

    model: ModelServer = field(default_factory=ModelServer)
    api_key: str | None = None
    swallow: int | None = None  # cut every connection after applying so many more messages
    refuse_connections: int = 0
    goaway: bool = False
    connections: int = 0
    port: int = 0
    seen: asyncio.Event = field(default_factory=asyncio.Event)
    sockets: set[ServerConnection] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def check(self, socket: ServerConnection, request: Request) -> Response | None:
        if self.refuse_connections > 0:
            self.refuse_connections -= 1
            return socket.respond(HTTPStatus.SERVICE_UNAVAILABLE, "later")
        if self.api_key and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return socket.respond(HTTPStatus.UNAUTHORIZED, "who are you?")
        return None

    async def handle(self, socket: ServerConnection) -> None:
        self.connections += 1
        self.sockets.add(socket)
        connection = self.model.connect()
        try:
            async for message in socket:
                reply = connection.answer(message)
                self.seen.set()
                if self.swallow is not None:
                    self.swallow -= 1
                    if self.swallow <= 0:
                        self.swallow = None
                        socket.transport.abort()
                        return
                await socket.send(reply)
                if self.goaway:
                    self.goaway = False
                    await socket.send(json.dumps({"type": "goaway", "time_left_s": 5}))
        except ConnectionClosed:
            pass
        finally:
            self.sockets.discard(socket)

    async def close_all(self, code: int) -> None:
        for socket in list(self.sockets):
            await socket.close(code)


@asynccontextmanager
async def running(server: FakeServer) -> AsyncGenerator[Server, None]:
    """Serve until the block ends."""
    async with serve(
        server.handle, "127.0.0.1", server.port, process_request=server.check
    ) as listener:
        server.port = next(iter(listener.sockets)).getsockname()[1]
        yield listener
