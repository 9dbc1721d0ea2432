"""What the client sends, as pure functions. The layout is in docs/protocol.md."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

import numpy as np
import numpy.typing as npt

from kssm_client.errors import InvalidInputError, TooLargeError
from kssm_client.types import Encoding, FloatArray, SessionOptions, Timestamp

Message = str | bytes

MAX_MESSAGE_BYTES = 1 << 20
MAX_MAGNITUDE = 1e30

HEADER = struct.Struct("<BBHIQ")
VERSION = 1
BINARY_VERSION = 2
"""Newest version of binary forecasts that this client reads: three numbers about anomalies."""
_KIND_FRAME = 1
_ENVELOPE_BYTES = 256
_EPOCH = np.datetime64(0, "s")


def to_json(body: object) -> str:
    """JSON text; numpy's numbers are numbers. InvalidInputError for what JSON does not have."""
    try:
        return json.dumps(body, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"cannot be sent: {error}", "invalid_message") from error


def _plain(value: object) -> object:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{value!r} is no number, text or list")


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
    return [_timestamp(t) for t in timestamps]


def _timestamp(time: Timestamp) -> float | str:
    if isinstance(time, np.datetime64):
        return float((time - _EPOCH) / np.timedelta64(1, "s"))
    return time.isoformat() if isinstance(time, datetime) else time


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
            return HEADER.pack(VERSION, _KIND_FRAME, 0, handle, seq) + self.samples
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
    return to_json(fields)[1:-1]


def _check_size(payload_bytes: int) -> None:
    if payload_bytes + _ENVELOPE_BYTES > MAX_MESSAGE_BYTES:
        raise TooLargeError(
            f"a message of {payload_bytes} bytes exceeds the limit of {MAX_MESSAGE_BYTES}; "
            "send the samples in several frames"
        )


def encode_control(kind: str, **fields: object) -> str:
    """A JSON control message; fields that are None are left out. Raises InvalidInputError."""
    present = {name: value for name, value in fields.items() if value is not None}
    return to_json({"type": kind, **present})


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
