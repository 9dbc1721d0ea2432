"""A WebSocket peer without a network, for ``service.connection``."""

from __future__ import annotations

import asyncio
import json
import struct
from typing import Any

import numpy as np

from service.connection import Connection
from service.core import Service


class Peer:
    """Talks to a ``Connection`` through two queues; ``stall`` stops it from reading."""

    def __init__(self, service: Service, tenant: str = "default") -> None:
        self._inbox: asyncio.Queue[str | bytes | None] = asyncio.Queue()
        self._outbox: asyncio.Queue[str | bytes] = asyncio.Queue()
        self._reads = asyncio.Event()
        self._reads.set()
        self.closed: int | None = None
        self.connection = Connection(service, tenant, self._inbox.get, self._deliver, self._end)
        self.task = asyncio.create_task(self.connection.run())

    async def _deliver(self, data: str | bytes) -> None:
        await self._reads.wait()
        self._outbox.put_nowait(data)

    async def _end(self, code: int, reason: str) -> None:
        self.closed = code
        self._inbox.put_nowait(None)

    def stall(self) -> None:
        self._reads.clear()

    def resume(self) -> None:
        self._reads.set()

    @property
    def unread(self) -> int:
        """Messages the server has not taken yet."""
        return self._inbox.qsize()

    def post(self, message: dict[str, Any] | str | bytes) -> None:
        self._inbox.put_nowait(json.dumps(message) if isinstance(message, dict) else message)

    async def raw(self) -> str | bytes:
        return await asyncio.wait_for(self._outbox.get(), 10)

    async def read(self) -> dict[str, Any]:
        data = await self.raw()
        assert isinstance(data, str)
        return json.loads(data)

    async def ask(self, message: dict[str, Any] | str | bytes) -> dict[str, Any]:
        self.post(message)
        return await self.read()

    async def create(self, **fields: Any) -> dict[str, Any]:
        created = await self.ask({"type": "session.create", **fields})
        assert created["type"] == "session.created", created
        return created

    async def leave(self) -> None:
        self._inbox.put_nowait(None)
        await self.task


def append(session: str, seq: int, *values: float, **fields):
    rows = [[value] for value in values or (1.0,)]
    return {"type": "frames.append", "session": session, "seq": seq, "values": rows, **fields}


def binary(handle: int, seq: int, *values: float) -> bytes:
    return struct.pack("<BBHIQ", 1, 1, 0, handle, seq) + np.array(values, dtype="<f4").tobytes()
