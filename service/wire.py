"""The WebSocket protocol without I/O: bytes in, a message or an error out; results in, bytes out.

``frames.append`` is checked by hand because it is the fast path; the rare control messages go
through the messages.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import orjson
from pydantic import ValidationError

from kssm.errors import InvalidInputError, KSSMError
from kssm.runtime import ForecastResult, GenerationResult
from service import messages, samples
from service.errors import describe, invalid
from service.samples import Float32, Float64

HEADER: Final = struct.Struct("<BBHIQ")
"""Version, kind, flags, handle, seq of a binary message."""
VERSION: Final = 1
"""Of binary frames, and of binary forecasts unless the client knows a later one."""
WITH_SURPRISE: Final = 2
"""Version of binary forecasts with three numbers a channel about anomalies."""
KIND_FRAME: Final = 1
KIND_FORECAST: Final = 2
MAX_SEQ: Final = 2**63 - 1

_APPEND_FIELDS: Final = frozenset({"type", "session", "seq", "values", "timestamps", "request_id"})
_CONTROLS: Final[Mapping[str, type[messages.Control]]] = MappingProxyType(
    {
        "session.create": messages.StreamCreate,
        "session.attach": messages.StreamAttach,
        "forecast.create": messages.StreamForecast,
        "session.reset": messages.StreamReset,
        "session.close": messages.StreamClose,
        "keepalive": messages.Keepalive,
        "tokens.append": messages.StreamTokens,
        "generate.create": messages.StreamGenerate,
        "generate.cancel": messages.StreamCancel,
    }
)


@dataclass(frozen=True, slots=True)
class Frame:
    """Samples to append. ``values`` is float64 [samples, channels], or float32 still flat."""

    seq: int
    values: Float64 | Float32
    timestamps: Float64 | None = None


@dataclass(frozen=True, slots=True)
class Append:
    """A ``frames.append``: text names the session, a binary message the connection's handle."""

    frame: Frame
    session: str | None = None
    handle: int | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """A message that is not understood, with what could be read of its address."""

    error: KSSMError
    session: str | None = None
    handle: int | None = None
    seq: int | None = None
    request_id: str | None = None


Message = Append | messages.Control | Rejected


def loads(data: bytes | str) -> Any:
    """Strict JSON: no NaN or Infinity, no number beyond float64, valid UTF-8, bounded depth."""
    try:
        return orjson.loads(data)
    except (ValueError, RecursionError) as error:
        nan = "NaN" in data if isinstance(data, str) else b"NaN" in data
        hint = "; a missing value is null, not NaN" if nan else ""
        raise InvalidInputError(f"not valid JSON: {error}{hint}", code="invalid_json") from None


def dumps(body: object) -> bytes:
    """JSON of ``body``; contiguous arrays are lists, NaN is null."""
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def parse_text(text: str | bytes) -> Message:
    """One text message of a client; never raises."""
    try:
        body = loads(text)
    except KSSMError as error:
        return Rejected(error)
    if type(body) is not dict:
        return Rejected(_bad("a message is a JSON object"))
    try:
        return _parse_append(body) if body.get("type") == "frames.append" else _control(body)
    except KSSMError as error:
        return _rejected(error, body)


def parse_binary(data: bytes) -> Append | Rejected:
    """One binary message of a client; never raises."""
    if len(data) < HEADER.size:
        message = f"a binary message has a header of {HEADER.size} bytes, got {len(data)}"
        return Rejected(InvalidInputError(message, code="truncated_frame"))
    version, kind, flags, handle, seq = HEADER.unpack_from(data)
    if version != VERSION or kind != KIND_FRAME or flags != 0:
        message = f"version {version}, kind {kind}, flags {flags} is not a frame of version 1"
        return Rejected(InvalidInputError(message, code="unsupported_frame"))
    try:
        frame = Frame(check_seq(seq), samples.from_bytes(memoryview(data)[HEADER.size :]))
    except KSSMError as error:
        return Rejected(error, handle=handle, seq=seq)
    return Append(frame, handle=handle)


def parse_frame(seq: object, values: object, stamps: object) -> Frame:
    """The frame of already decoded JSON fields. Raises ``InvalidInputError``."""
    array = samples.from_base64(values) if type(values) is str else samples.rows(values)
    times = None if stamps is None else samples.timestamps(stamps)
    return Frame(check_seq(seq), array, times)


def check_seq(seq: object) -> int:
    """``seq`` if it is an integer in 0 … 2**63 - 1. Raises ``InvalidInputError``."""
    if type(seq) is not int or not 0 <= seq <= MAX_SEQ:
        raise _bad("seq is an integer from 0 to 2**63 - 1")
    return seq


def forecast_body(session: str, seq: int, result: ForecastResult) -> dict[str, object]:
    """The forecast after frame ``seq``, ready for ``dumps``."""
    by_level = np.ascontiguousarray(result.quantiles.transpose(1, 0, 2))
    return {
        "session": session,
        "seq": seq,
        "horizon": result.horizon,
        "quantiles": quantile_map(result.levels, by_level),
        "anomaly": [
            {"score": score, "tail_probability": tail, "surprise": surprise}
            for score, tail, surprise in result.anomaly.tolist()
        ],
    }


def quantile_map(levels: Sequence[float], values: Iterable[Float64]) -> dict[str, Float64]:
    """``{"0.1": values[0], ...}``."""
    return {repr(level): part for level, part in zip(levels, values, strict=True)}


def encode_forecast(session: str, seq: int, result: ForecastResult, request_id: str | None) -> str:
    """The text reply to a frame."""
    body = {"type": "forecast", **forecast_body(session, seq, result)}
    return encode(body, request_id)


def encode_forecast_binary(
    handle: int, seq: int, result: ForecastResult, version: int = VERSION
) -> bytes:
    """Header, float32 [channels, quantiles, horizon], float32 [channels, (score, tail)].

    From ``WITH_SURPRISE`` on the last are (score, tail, surprise).
    """
    anomaly = result.anomaly[:, : 3 if version >= WITH_SURPRISE else 2]
    header = HEADER.pack(version, KIND_FORECAST, 0, handle, seq)
    return header + _little(result.quantiles) + _little(anomaly)


def encode_token(
    session: str, number: int, token: int, text: str | None, request_id: str | None
) -> str:
    """One generated token; ``text`` is what it adds, where there is a tokenizer."""
    body: dict[str, object] = {"type": "token", "session": session, "index": number, "token": token}
    return encode(body if text is None else {**body, "text": text}, request_id)


def encode_generation(
    session: str, result: GenerationResult, text: str | None, request_id: str | None
) -> str:
    """The reply to ``generate.create``, after the last of its tokens."""
    body: dict[str, object] = {
        "type": "generation",
        "session": session,
        "tokens": list(result.tokens),
        "reason": result.reason,
    }
    return encode(body if text is None else {**body, "text": text}, request_id)


def encode_ack(
    of: str, request_id: str | None, session: str | None = None, seq: int | None = None
) -> str:
    """The reply to a message that has no result of its own."""
    body: dict[str, object] = {"type": "ack", "of": of}
    return encode(_addressed(body, session, seq), request_id)


def encode_error(
    error: BaseException,
    session: str | None = None,
    seq: int | None = None,
    request_id: str | None = None,
) -> str:
    """The reply to a message that was not applied."""
    body: dict[str, object] = {"type": "error", "error": describe(error)}
    return encode(_addressed(body, session, seq), request_id)


def encode_goaway(time_left_s: float) -> str:
    """The announcement that the server is about to close the connection."""
    return encode({"type": "goaway", "time_left_s": time_left_s})


def encode(body: dict[str, object], request_id: str | None = None) -> str:
    """A text message, with the request's id echoed."""
    if request_id is not None:
        body["request_id"] = request_id
    return dumps(body).decode()


def _parse_append(body: dict[str, Any]) -> Append:
    if not _APPEND_FIELDS.issuperset(body):
        raise _bad(f"unknown fields: {sorted(body.keys() - _APPEND_FIELDS)}")
    session, request_id = body.get("session"), body.get("request_id")
    if type(session) is not str:
        raise _bad("session is a string")
    if request_id is not None and _request_id(body) is None:
        raise _bad("request_id is a string of at most 256 characters")
    frame = parse_frame(body.get("seq"), body.get("values"), body.get("timestamps"))
    return Append(frame, session=session, request_id=request_id)


def _control(body: dict[str, Any]) -> messages.Control:
    kind = body.get("type")
    model = _CONTROLS.get(kind) if type(kind) is str else None
    if model is None:
        raise InvalidInputError("there is no message of this type", code="unknown_type")
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise invalid(error, "invalid_message") from None


def _rejected(error: KSSMError, body: Mapping[str, Any]) -> Rejected:
    session, seq = body.get("session"), body.get("seq")
    return Rejected(
        error,
        session=session if type(session) is str and len(session) <= 64 else None,
        seq=seq if type(seq) is int else None,
        request_id=_request_id(body),
    )


def _request_id(body: Mapping[str, Any]) -> str | None:
    value = body.get("request_id")
    return value if type(value) is str and len(value) <= 256 else None


def _addressed(body: dict[str, object], session: str | None, seq: int | None) -> dict[str, object]:
    if session is not None:
        body["session"] = session
    if seq is not None:
        body["seq"] = seq
    return body


def _little(values: Float64) -> bytes:
    largest = np.finfo(np.float32).max
    return np.clip(values, -largest, largest).astype("<f4").tobytes()


def _bad(message: str) -> InvalidInputError:
    return InvalidInputError(message, code="invalid_message")
