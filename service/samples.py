"""Sample values and timestamps of decoded JSON or raw bytes, as float arrays.

Every function raises ``InvalidInputError`` with the code that names what is wrong; the range of
the numbers is the engine's to check.
"""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime
from itertools import chain
from types import NoneType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kssm.errors import InvalidInputError

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]

_NUMBERS: Final = frozenset({int, float})
_SAMPLES: Final = frozenset({int, float, NoneType})
_YEAR_10000: Final = 253_402_300_800.0


def rows(values: object) -> Float64:
    """[samples, channels] float64 of a list of rows; null is NaN."""
    if type(values) is not list:
        raise _bad("values is a list of rows, one a sample")
    if not values:
        raise InvalidInputError("there is not one sample in it", code="empty_frame")
    if any(type(row) is not list for row in values):
        raise _bad("a row is a list of numbers or nulls, one a channel")
    width = len(values[0])
    if width == 0 or any(len(row) != width for row in values):
        raise InvalidInputError("rows differ in length or are empty", code="wrong_shape")
    return _numbers(list(chain.from_iterable(values))).reshape(len(values), width)


def column(values: object) -> Float64:
    """[samples] float64 of a list of numbers and nulls."""
    if type(values) is not list:
        raise _bad("values is a list of numbers or nulls")
    if not values:
        raise InvalidInputError("there is not one sample in it", code="empty_frame")
    return _numbers(values)


def timestamps(stamps: object) -> Float64:
    """Unix seconds of a list of numbers or ISO 8601 strings, to the year 9999.

    What lies beyond is no time in seconds, and no later sample could follow it.
    """
    if type(stamps) is not list or not stamps:
        raise InvalidInputError("timestamps is a list, one a sample", code="invalid_timestamps")
    if not _NUMBERS.issuperset(map(type, stamps)):
        stamps = [_seconds(stamp) for stamp in stamps]
    seconds = np.array(stamps, dtype=np.float64)
    if (np.abs(seconds) >= _YEAR_10000).any():
        message = "a timestamp is beyond the year 9999: numbers are seconds, not milliseconds"
        raise InvalidInputError(message, code="invalid_timestamps")
    return seconds


def _numbers(flat: list[Any]) -> Float64:
    if not _SAMPLES.issuperset(map(type, flat)):
        raise _bad("a sample is a number or null")
    return np.array(flat, dtype=np.float64)


def from_base64(text: str) -> Float32:
    """Flat float32 of base64 of little-endian float32."""
    try:
        return from_bytes(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        raise _bad("values is not valid base64") from None


def from_bytes(data: bytes | memoryview) -> Float32:
    """Flat float32 of little-endian float32; NaN is missing."""
    if len(data) == 0:
        raise InvalidInputError("there is not one sample in it", code="empty_frame")
    if len(data) % 4:
        message = f"{len(data)} bytes are not a whole number of float32 values"
        raise InvalidInputError(message, code="truncated_frame")
    return np.frombuffer(data, dtype="<f4")


def _seconds(stamp: object) -> float:
    if type(stamp) in _NUMBERS:
        return float(stamp)  # type: ignore[arg-type]
    try:
        moment = datetime.fromisoformat(stamp)  # type: ignore[arg-type]
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError):
        message = "a timestamp is a number of Unix seconds or an ISO 8601 string"
        raise InvalidInputError(message, code="invalid_timestamps") from None


def _bad(message: str) -> InvalidInputError:
    return InvalidInputError(message, code="invalid_message")
