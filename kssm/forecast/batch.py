"""Whole series in ragged batches: checks, grouping, and the state after each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from kssm.errors import InvalidInputError
from kssm.forecast.forecaster import SignalForecaster
from kssm.forecast.scaler import MAX_ABSOLUTE
from kssm.models import State


def as_numbers(values: ArrayLike) -> NDArray[np.float64]:
    """``values`` as float64, whatever their shape; raises ``wrong_dtype``."""
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"samples must be numbers: {error}", "wrong_dtype") from error


def check_range(samples: NDArray[np.float64]) -> None:
    """Raises ``non_finite_value`` for infinities, ``value_out_of_range``; NaN = missing."""
    if np.isinf(samples).any():
        raise InvalidInputError("samples must be finite, or NaN", code="non_finite_value")
    if (np.abs(samples) > MAX_ABSOLUTE).any():
        raise InvalidInputError(f"samples must be within ±{MAX_ABSOLUTE:g}", "value_out_of_range")


def as_series(values: ArrayLike) -> NDArray[np.float64]:
    """One series as float64 (NaN = missing).

    Raises ``wrong_dtype``, ``wrong_shape``, ``empty_series``, ``non_finite_value`` or
    ``value_out_of_range``.
    """
    series = as_numbers(values)
    if series.ndim != 1:
        raise InvalidInputError("a series must be one-dimensional", code="wrong_shape")
    if series.size == 0:
        raise InvalidInputError("a series must hold at least one sample", code="empty_series")
    check_range(series)
    return series


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Rows grouped by similar length, each group's padded size within ``budget`` samples."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[row] > budget:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def consume(
    model: SignalForecaster,
    series: Sequence[NDArray[np.float64]],
    budget: int,
    state: State | None = None,
) -> State:
    """State after the whole of each series, in passes of at most ``budget`` samples.

    ``state`` (one row a series, never modified) is continued from; None starts fresh rows.
    """
    lengths = torch.tensor([len(values) for values in series], device=model.device)
    padded = np.full((len(series), max(map(len, series))), np.nan)
    for row, values in enumerate(series):
        padded[row, : len(values)] = values
    samples = torch.from_numpy(padded).to(model.device)
    current = model.initial_state(len(series)) if state is None else state
    chunk = max(1, budget // len(series))
    for start in range(0, samples.shape[1], chunk):
        part = samples[:, start : start + chunk]
        left = (lengths - start).clamp(0, part.shape[1])
        current = model.prefill(part, current, left).state
    return current
