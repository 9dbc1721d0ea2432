"""Anomaly monitors as compiled code: the arithmetic of ``kssm.forecast.anomaly``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kssm.forecast.native import library

Floats = NDArray[np.float64]


def advance_(
    state: Floats, values: Floats, tail: Floats, slots: NDArray[np.int64] | None = None
) -> tuple[Floats, Floats] | None:
    """Bring monitors forward by samples, in place: probability and surprise like ``values``.

    Args:
        state: [monitors, 10] float64, contiguous.
        values, tail: [samples, rows].
        slots: [rows] the rows' monitors, all different; None = one after the other.

    Returns None where there is no compiled code.
    """
    compiled = library.load()
    if compiled is None:
        return None
    samples = np.ascontiguousarray(values, dtype=np.float64)
    tails = np.ascontiguousarray(tail, dtype=np.float64)
    answer = np.empty((2, *samples.shape))
    assert samples.shape == tails.shape
    assert state.flags.c_contiguous
    tokens, count = samples.shape
    watched = library.Watched(
        count,
        tokens,
        None if slots is None else slots.ctypes.data,
        samples.ctypes.data,
        tails.ctypes.data,
        state.ctypes.data,
        answer[0].ctypes.data,
        answer[1].ctypes.data,
    )
    compiled.watch(watched)
    return answer[0], answer[1]
