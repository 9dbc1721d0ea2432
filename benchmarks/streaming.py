"""Frame sent to forecast received, over a real WebSocket."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection, connect

APPEND = struct.Struct("<BBHIQ")  # version, kind, flags, handle, seq

SHARING = 128
"""Most sessions of a connection; a server takes 256 unanswered messages of one."""


@dataclass(frozen=True)
class Session:
    """An open session and how its frames are written."""

    id: str
    handle: int
    binary: bool

    def frame(self, seq: int, value: float) -> str | bytes:
        """The message that appends one sample."""
        if self.binary:
            return APPEND.pack(1, 1, 0, self.handle, seq) + struct.pack("<f", value)
        fields = {"session": self.id, "seq": seq, "values": [[value]]}
        return json.dumps({"type": "frames.append", **fields})


async def time_frames(
    port: int,
    frames: NDArray[np.float64],
    *,
    horizon: int,
    levels: Sequence[float],
    binary: bool,
) -> list[float]:
    """Seconds from each frame's sending to its forecast, in the order of ``frames`` [T, sessions].

    ``SHARING`` sessions share a connection; each sends its next frame when all of these have their
    last forecasts. Raises ``RuntimeError`` with the server's words if it answers otherwise.
    """
    create = {
        "type": "session.create",
        "horizon": horizon,
        "quantiles": list(levels),
        "encoding": "binary" if binary else "json",
    }
    address = f"ws://127.0.0.1:{port}/v1/stream"
    shares = [frames[:, first : first + SHARING] for first in range(0, frames.shape[1], SHARING)]
    timed = await asyncio.gather(*(_time_connection(address, create, share) for share in shares))
    return np.concatenate(timed, axis=1).ravel().tolist()


async def _time_connection(
    address: str, create: dict[str, Any], frames: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Seconds [T, sessions] of the sessions of one connection."""
    seconds: list[list[float]] = []
    binary = create["encoding"] == "binary"
    async with connect(address, compression=None) as connection:
        replies = [await _request(connection, create) for _ in range(frames.shape[1])]
        sessions = [Session(reply["session"], reply["handle"], binary) for reply in replies]
        for seq, values in enumerate(frames.tolist()):
            pairs = zip(sessions, values, strict=True)
            messages = [session.frame(seq, value) for session, value in pairs]
            seconds.append(await _exchange(connection, messages))
        for session in sessions:
            await _request(connection, {"type": "session.close", "session": session.id})
    return np.array(seconds)


async def _request(connection: ClientConnection, message: dict[str, Any]) -> dict[str, Any]:
    await connection.send(json.dumps(message))
    reply = json.loads(await connection.recv())
    if reply["type"] == "error":
        raise RuntimeError(f"the server answered {reply}")
    return reply


async def _exchange(connection: ClientConnection, messages: Sequence[str | bytes]) -> list[float]:
    sent: list[float] = []
    for message in messages:
        sent.append(time.perf_counter())
        await connection.send(message)
    return [await _reply(connection, start) for start in sent]


async def _reply(connection: ClientConnection, start: float) -> float:
    reply = await connection.recv()
    elapsed = time.perf_counter() - start
    if isinstance(reply, str) and json.loads(reply)["type"] != "forecast":
        raise RuntimeError(f"the server answered {reply}")
    return elapsed
