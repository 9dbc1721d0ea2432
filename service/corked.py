"""A connection's way out that sends together what was written together."""

from __future__ import annotations

import asyncio
from typing import Any, Final

MOST: Final = 65536
"""Bytes that are not held back any longer."""


class CorkedTransport(asyncio.Transport):
    """``transport``, but of what is written in one turn of the event loop all but the first bytes
    go out in one piece, in the next turn.

    A system call for every answer costs more than all else that is done for it. Flow control is
    that of ``transport``.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._held: list[bytes | bytearray | memoryview] = []
        self._bytes = 0
        self._holding = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send the bytes, now or soon."""
        if not self._holding:
            self._hold()
            self._transport.write(data)
            return
        self._held.append(data)
        self._bytes += len(data)
        if self._bytes >= MOST:
            self.flush()

    def flush(self) -> None:
        """Send what is held back."""
        if self._held:
            held, self._held, self._bytes = self._held, [], 0
            self._transport.write(held[0] if len(held) == 1 else b"".join(held))

    def _hold(self) -> None:
        """Until the loop's next turn."""
        self._holding = True
        self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._holding = False
        if self._held:
            self._hold()
            self.flush()

    def close(self) -> None:
        """Send what is held back, then close."""
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        """Close at once; nothing more is sent."""
        self._held.clear()
        self._transport.abort()

    def is_closing(self) -> bool:
        """Whether it is closed or about to be."""
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        """Receive nothing for now."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Receive again."""
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What is known of the connection."""
        return self._transport.get_extra_info(name, default)
