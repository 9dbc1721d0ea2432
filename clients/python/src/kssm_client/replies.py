"""What the server sends, as pure functions. The layout is in docs/protocol.md."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from kssm_client.errors import ProtocolError, ServerError, error_from_body
from kssm_client.types import Anomaly, Encoding, Forecast, SessionInfo
from kssm_client.wire import BINARY_VERSION, HEADER, VERSION, Message

_KIND_FORECAST = 2


@dataclass(frozen=True, slots=True)
class Created:
    """``session.created``: settings, and what holds for this connection only."""

    info: SessionInfo
    handle: int
    max_in_flight: int


@dataclass(frozen=True, slots=True)
class Ack:
    """``ack`` of a message of type ``of``."""

    of: str


@dataclass(frozen=True, slots=True)
class GoAway:
    """The server drains; it closes the connection within ``time_left_s`` seconds."""

    time_left_s: float


@dataclass(frozen=True, slots=True)
class BinaryForecast:
    """A binary reply whose shape only the session knows."""

    handle: int
    seq: int
    numbers: npt.NDArray[np.float32]
    version: int = VERSION


Reply = Created | Ack | GoAway | Forecast | BinaryForecast | ServerError


def decode(message: Message) -> Reply:
    """One server message; ProtocolError for anything the protocol does not know."""
    try:
        return _decode_binary(message) if isinstance(message, bytes) else _decode_text(message)
    except ProtocolError:
        raise
    except (KeyError, TypeError, ValueError, struct.error) as error:
        raise ProtocolError(f"unreadable message from the server: {error!r}") from error


def _decode_text(message: str) -> Reply:
    body = cast("dict[str, Any]", json.loads(message))
    match body["type"]:
        case "forecast":
            return forecast_from_body(body)
        case "ack":
            return Ack(str(body["of"]))
        case "error":
            return error_from_body(cast("Mapping[str, object]", body["error"]))
        case "session.created":
            return Created(
                info_from_body(body), int(body["handle"]), int(body.get("max_in_flight", 256))
            )
        case "goaway":
            return GoAway(float(body.get("time_left_s", 0.0)))
        case other:
            raise ProtocolError(f"unknown message type {other!r} from the server")


def _decode_binary(message: bytes) -> BinaryForecast:
    version, kind, _flags, handle, seq = HEADER.unpack_from(message)
    if not VERSION <= version <= BINARY_VERSION or kind != _KIND_FORECAST:
        raise ProtocolError(f"binary message of version {version}, kind {kind}")
    return BinaryForecast(handle, seq, np.frombuffer(message, "<f4", offset=HEADER.size), version)


def shape_binary(reply: BinaryForecast, info: SessionInfo) -> Forecast:
    """Give a binary reply its session's shape; ProtocolError when the length does not fit."""
    channels, levels = info.channels, info.quantiles
    size, facts = channels * len(levels) * info.horizon, reply.version + 1
    if reply.numbers.size != size + facts * channels:
        raise ProtocolError(f"binary forecast of {reply.numbers.size} numbers does not fit")
    numbers = reply.numbers.astype(np.float64)
    values = numbers[:size].reshape(channels, len(levels), info.horizon)
    anomalies = tuple(
        Anomaly(*map(_number, channel)) for channel in numbers[size:].reshape(-1, facts)
    )
    order = sorted(range(len(levels)), key=levels.__getitem__)
    ascending = tuple(levels[index] for index in order)
    return Forecast(info.session, reply.seq, ascending, values[:, order], anomalies)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def info_from_body(body: Mapping[str, Any]) -> SessionInfo:
    """A session's settings, from WebSocket (``session``) or REST (``session_id``)."""
    encoding: Encoding = "binary" if body.get("encoding") == "binary" else "json"
    return SessionInfo(
        session=str(body["session"] if "session" in body else body["session_id"]),
        model=str(body.get("model", "")),
        channels=int(body["channels"]),
        horizon=int(body["horizon"]),
        quantiles=tuple(float(level) for level in body["quantiles"]),
        encoding=encoding,
        next_seq=int(body.get("next_seq", 0)),
    )


def forecast_from_body(body: Mapping[str, Any]) -> Forecast:
    """A JSON forecast (WebSocket and REST have the same body)."""
    by_level = sorted((float(k), v) for k, v in body["quantiles"].items())
    values = np.stack([np.asarray(rows, dtype=np.float64) for _, rows in by_level], axis=1)
    anomalies = tuple(
        Anomaly(entry["score"], entry["tail_probability"], entry.get("surprise"))
        for entry in body.get("anomaly") or ()
    )
    levels = tuple(level for level, _ in by_level)
    return Forecast(str(body["session"]), int(body["seq"]), levels, values, anomalies)
