"""Checks of what callers submit; everything here runs in the caller's thread, on numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kssm.errors import InvalidInputError
from kssm.forecast.gaps import bridge, tokens_per_sample
from kssm.runtime.contract import Floats

MAX_MAGNITUDE = 1e30
MAX_LEVELS = 256


@dataclass(frozen=True)
class Query:
    """What to read from a state: equal queries are answered in one batch."""

    horizon: int
    levels: tuple[float, ...]


def check_query(horizon: int, levels: Sequence[float], max_horizon: int) -> Query:
    """InvalidInputError ``invalid_horizon`` or ``invalid_quantiles`` unless both can be served."""
    if isinstance(horizon, bool) or not isinstance(horizon, (int, np.integer)):
        raise InvalidInputError("the horizon must be a whole number", code="invalid_horizon")
    if not 1 <= horizon <= max_horizon:
        raise InvalidInputError(
            f"the horizon must lie between 1 and {max_horizon}", code="invalid_horizon"
        )
    try:
        wanted = tuple(float(level) for level in levels)
    except (TypeError, ValueError) as error:
        raise InvalidInputError("levels must be numbers", code="invalid_quantiles") from error
    if not 1 <= len(wanted) <= MAX_LEVELS or not all(0.0 < level < 1.0 for level in wanted):
        raise InvalidInputError(
            f"1 to {MAX_LEVELS} levels strictly between 0 and 1 are needed",
            code="invalid_quantiles",
        )
    return Query(int(horizon), wanted)


def check_values(values: NDArray[Any], channels: int) -> Floats:
    """A private float64 copy of samples [samples, channels]; NaN = missing.

    InvalidInputError ``wrong_shape``, ``empty_frame``, ``non_finite_value`` (infinite) or
    ``value_out_of_range``.
    """
    samples = _floats(values)
    if samples.ndim != 2 or samples.shape[1] != channels:
        raise InvalidInputError(
            f"values must have the shape [samples, {channels}]", code="wrong_shape"
        )
    if not len(samples):
        raise InvalidInputError("there are no samples", code="empty_frame")
    largest = np.fmax.reduce(np.abs(samples), axis=None)  # NaN where all are missing
    if largest > MAX_MAGNITUDE:
        raise _out_of_range(np.isinf(largest))
    return samples


def _out_of_range(infinite: np.bool_) -> InvalidInputError:
    if infinite:
        return InvalidInputError("a value is infinite", code="non_finite_value")
    message = f"a value is larger than {MAX_MAGNITUDE:g}"
    return InvalidInputError(message, code="value_out_of_range")


def check_ids(values: NDArray[Any], dt: NDArray[Any] | None, vocabulary: int) -> None:
    """InvalidInputError ``invalid_tokens`` unless the values are ids of a vocabulary."""
    ids = _floats(values)
    if dt is not None:
        raise InvalidInputError("tokens have no timestamps", code="invalid_timestamps")
    with np.errstate(invalid="ignore"):
        known = (ids >= 0) & (ids < vocabulary) & (ids == np.floor(ids))
    if not known.all():
        message = f"tokens are whole numbers in 0 ... {vocabulary - 1}"
        raise InvalidInputError(message, code="invalid_tokens")


def check_dt(dt: NDArray[Any], samples: int) -> Floats:
    """Time since the previous sample [samples] in sample intervals.

    InvalidInputError ``invalid_timestamps`` unless all are finite and positive.
    """
    try:
        steps = np.array(dt, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError("dt must be numbers", code="invalid_timestamps") from error
    if steps.shape != (samples,):
        raise InvalidInputError("dt needs one entry a sample", code="invalid_timestamps")
    if not (np.isfinite(steps) & (steps > 0)).all():
        raise InvalidInputError("dt must be finite and positive", code="invalid_timestamps")
    return steps


def to_tokens(
    values: NDArray[Any],
    dt: NDArray[Any] | None,
    *,
    channels: int,
    max_gap: int,
    max_tokens: int,
) -> tuple[Floats, Floats | None]:
    """Checked samples with their gaps bridged: (values [tokens, channels], dt [tokens]).

    ``dt`` of None means 1 throughout, and stays so.
    InvalidInputError ``message_too_large`` when they make more than ``max_tokens`` tokens of one
    channel (counted before any memory is taken), else as ``check_values`` and ``check_dt``.
    """
    samples = check_values(values, channels)
    steps = None if dt is None else check_dt(dt, len(samples))
    tokens = len(samples) if steps is None else int(tokens_per_sample(steps, max_gap).sum())
    if tokens * channels > max_tokens:
        raise InvalidInputError(
            f"{tokens * channels} tokens at once are more than {max_tokens}",
            code="message_too_large",
        )
    if steps is None or tokens == len(samples):
        return samples, steps
    return bridge(samples, steps, max_gap)


def check_channels(channels: int) -> int:
    """InvalidInputError unless ``channels`` is a positive whole number."""
    if isinstance(channels, bool) or not isinstance(channels, (int, np.integer)) or channels < 1:
        raise InvalidInputError("channels must be a positive whole number")
    return int(channels)


def _floats(values: NDArray[Any]) -> Floats:
    if type(values) is np.ndarray and values.dtype == np.float64:
        return values.copy()  # what can neither fail nor warn
    try:
        with np.errstate(over="ignore"):
            return np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError("values must be a table of numbers", code="wrong_shape") from error


def check_series(samples: NDArray[Any]) -> Floats:
    """One series [samples] as a column [samples, 1]; InvalidInputError ``wrong_shape``."""
    column = _floats(samples)
    if column.ndim != 1:
        raise InvalidInputError("a series must have the shape [samples]", code="wrong_shape")
    return column[:, None]
