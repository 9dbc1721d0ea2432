"""The least a client needs, for tests of the server alone: one connection, one reader a time."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import numpy as np
from websockets.asyncio.client import ClientConnection

Json = dict[str, Any]


async def ask(stream: ClientConnection, message: Json | str | bytes) -> Json:
    """Send a message and read its answer, which must be text."""
    await stream.send(json.dumps(message) if isinstance(message, dict) else message)
    return await read(stream)


async def read(stream: ClientConnection) -> Json:
    data = await stream.recv()
    assert isinstance(data, str)
    return json.loads(data)


async def create(stream: ClientConnection, **fields: Any) -> Json:
    created = await ask(stream, {"type": "session.create", **fields})
    assert created["type"] == "session.created", created
    return created


def rows(values: np.ndarray) -> list[list[float | None]]:
    """[samples, channels] as JSON, NaN as null."""
    return [[None if np.isnan(x) else float(x) for x in row] for row in values]


def text_frame(session: str, seq: int, values: np.ndarray, **fields: Any) -> str:
    message = {"type": "frames.append", "session": session, "seq": seq, "values": rows(values)}
    return json.dumps({**message, **fields})


def base64_frame(session: str, seq: int, values: np.ndarray) -> str:
    payload = base64.b64encode(values.astype("<f4").tobytes()).decode()
    message = {"type": "frames.append", "session": session, "seq": seq, "values": payload}
    return json.dumps(message)


def binary_frame(handle: int, seq: int, values: np.ndarray) -> bytes:
    return struct.pack("<BBHIQ", 1, 1, 0, handle, seq) + values.astype("<f4").tobytes()


def quantiles_of(reply: str | bytes, channels: int, levels: int) -> np.ndarray:
    """[channels, levels, horizon] of a forecast in either form."""
    if isinstance(reply, bytes):
        assert struct.unpack_from("<BBH", reply) == (1, 2, 0)
        floats = np.frombuffer(reply, "<f4", offset=16)[: -2 * channels]
        return floats.reshape(channels, levels, -1).astype(np.float64)
    body = json.loads(reply)
    assert "quantiles" in body, body
    return np.array(list(body["quantiles"].values())).transpose(1, 0, 2)
