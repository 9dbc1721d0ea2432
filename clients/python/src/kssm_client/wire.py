"""Bytes and text of the protocol, as pure functions. The layout is in docs/protocol.md."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from kssm_client.errors import (
    InvalidInputError,
    ProtocolError,
    ServerError,
    TooLargeError,
    error_from_body,
)
from kssm_client.types import (
    Anomaly,
    Encoding,
    FloatArray,
    Forecast,
    SessionInfo,
    SessionOptions,
    Timestamp,
)

Message = str | bytes

MAX_MESSAGE_BYTES = 1 << 20
MAX_MAGNITUDE = 1e30

_HEADER = struct.Struct("<BBHIQ")
_VERSION = 1
BINARY_VERSION = 2
"""Newest version of binary forecasts that this client reads: three numbers about anomalies."""
_KIND_FRAME = 1
_KIND_FORECAST = 2
_ENVELOPE_BYTES = 256


def as_samples(values: npt.ArrayLike, channels: int) -> FloatArray:
    """``values`` as float64 [samples, channels]; None and NaN are missing samples.

    A number is one sample of one channel; a flat sequence is one sample of every channel, or
    for a single channel a run of samples. Raises InvalidInputError for anything else.
    """
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"values are not numbers: {error}", "wrong_shape") from error
    if array.ndim < 2:
        array = array.reshape(-1, 1) if channels == 1 else array.reshape(1, -1)
    if array.ndim != 2 or array.shape[1] != channels:
        raise InvalidInputError(
            f"values have shape {np.shape(array)}, expected [samples, {channels}]", "wrong_shape"
        )
    return _checked(array)


def _checked(array: FloatArray) -> FloatArray:
    if array.shape[0] == 0:
        raise InvalidInputError("a frame needs at least one sample", "empty_frame")
    if np.isinf(array).any():
        raise InvalidInputError("values must be finite or missing", "non_finite_value")
    if (np.abs(array) > MAX_MAGNITUDE).any():
        raise InvalidInputError(f"values exceed {MAX_MAGNITUDE:g}", "value_out_of_range")
    return array


def as_rows(samples: FloatArray) -> list[list[float | None]]:
    """Samples as JSON rows, missing ones as None."""
    if not np.isnan(samples).any():
        return cast("list[list[float | None]]", samples.tolist())
    return [[None if math.isnan(value) else value for value in row] for row in samples.tolist()]


def as_timestamps(timestamps: Sequence[Timestamp]) -> list[float | str]:
    """Timestamps as JSON: Unix seconds or ISO 8601 text."""
    return [t.isoformat() if isinstance(t, datetime) else t for t in timestamps]


@dataclass(frozen=True, slots=True)
class Frame:
    """An encoded frame, lacking only what the connection decides: handle and number.

    ``samples`` holds float32 bytes for a binary message, ``fields`` the rest of a JSON object.
    """

    samples: bytes | None
    fields: str | None

    def encode(self, session: str, handle: int, seq: int) -> Message:
        """The message that sends this frame as number ``seq``."""
        if self.samples is not None:
            return _HEADER.pack(_VERSION, _KIND_FRAME, 0, handle, seq) + self.samples
        head = {"type": "frames.append", "session": session, "seq": seq}
        return f"{json.dumps(head)[:-1]}, {self.fields}}}"


def encode_frame(
    values: npt.ArrayLike,
    channels: int,
    encoding: Encoding,
    timestamps: Sequence[Timestamp] | None = None,
) -> Frame:
    """Check and encode a frame once, however often it has to be sent.

    Binary messages have no room for timestamps, so a binary session's frame that carries them
    travels as JSON with base64 samples.
    """
    samples = as_samples(values, channels)
    if timestamps is not None and len(timestamps) != len(samples):
        raise InvalidInputError(
            f"{len(timestamps)} timestamps for {len(samples)} samples", "invalid_timestamps"
        )
    frame = _encode(samples, encoding, timestamps)
    _check_size(len(frame.samples or frame.fields or ""))
    return frame


def _encode(
    samples: FloatArray, encoding: Encoding, timestamps: Sequence[Timestamp] | None
) -> Frame:
    if encoding == "json":
        return Frame(None, _fields(as_rows(samples), timestamps))
    packed = samples.astype("<f4").tobytes()
    if timestamps is None:
        return Frame(packed, None)
    return Frame(None, _fields(base64.b64encode(packed).decode("ascii"), timestamps))


def _fields(values: object, timestamps: Sequence[Timestamp] | None) -> str:
    fields: dict[str, object] = {"values": values}
    if timestamps is not None:
        fields["timestamps"] = as_timestamps(timestamps)
    return json.dumps(fields, allow_nan=False)[1:-1]


def _check_size(payload_bytes: int) -> None:
    if payload_bytes + _ENVELOPE_BYTES > MAX_MESSAGE_BYTES:
        raise TooLargeError(
            f"a message of {payload_bytes} bytes exceeds the limit of {MAX_MESSAGE_BYTES}; "
            "send the samples in several frames"
        )


def encode_control(kind: str, **fields: object) -> str:
    """A JSON control message; fields that are None are left out."""
    present = {name: value for name, value in fields.items() if value is not None}
    return json.dumps({"type": kind, **present}, allow_nan=False)


def binary_version(encoding: Encoding | None) -> int | None:
    """The version of binary forecasts to ask for."""
    return BINARY_VERSION if encoding == "binary" else None


def encode_create(options: SessionOptions) -> str:
    """The ``session.create`` message; TooLargeError when the prompt does not fit into one."""
    prompt = None if options.prompt is None else as_rows(options.prompt)
    times = None if options.timestamps is None else as_timestamps(options.timestamps)
    message = encode_control(
        "session.create",
        model=options.model,
        channels=options.channels,
        horizon=options.horizon,
        quantiles=list(options.quantiles),
        prompt=prompt,
        timestamps=times,
        sample_interval=options.sample_interval,
        encoding=options.encoding,
        binary_version=binary_version(options.encoding),
    )
    _check_size(len(message))
    return message


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
    version: int = _VERSION


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
    version, kind, _flags, handle, seq = _HEADER.unpack_from(message)
    if not _VERSION <= version <= BINARY_VERSION or kind != _KIND_FORECAST:
        raise ProtocolError(f"binary message of version {version}, kind {kind}")
    return BinaryForecast(handle, seq, np.frombuffer(message, "<f4", offset=_HEADER.size), version)


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
