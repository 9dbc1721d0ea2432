"""What the audio forecaster is compared with: linear prediction and repetition.

Everything works on float64 arrays and sees the past only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_TINY: Final = 1e-12


def barnwell(length: int, decay: float) -> Floats:
    """Window n a^n, n back from the latest sample (Barnwell 1981)."""
    n = np.arange(length, 0, -1.0)
    window = n * decay**n
    return window / window.max()


def skewed(length: int, fall: int) -> Floats:
    """Window that rises as a sine and falls within the last ``fall`` samples (as in G.728)."""
    rise = np.sin(np.linspace(0.0, np.pi / 2, length - fall + 1)[1:])
    return np.concatenate([rise, np.cos(np.linspace(0.0, np.pi / 2, fall + 1)[:-1])])


def levinson(products: Floats, order: int) -> Floats:
    """Predictors [n, order], latest sample first, from autocorrelations [n, order + 1]."""
    taps = np.zeros((len(products), 0))
    error = products[:, 0] + _TINY
    for i in range(order):
        known = np.einsum("ni,ni->n", taps, products[:, 1 : i + 1][:, ::-1])
        k = ((products[:, i + 1] - known) / error)[:, None]
        taps = np.concatenate([taps - k * taps[:, ::-1], k], axis=1)
        error = np.maximum(error * (1.0 - k[:, 0] ** 2), _TINY)
    return taps


def backward_predictors(
    x: Floats, order: int, window: Floats, every: int, white: float = 1e-5
) -> Floats:
    """Predictors before every ``every``-th sample, from the samples before it alone.

    Autocorrelation method with ``window``, ``white`` noise added.
    """
    size = len(window)
    frames = sliding_window_view(np.concatenate([np.zeros(size), x]), size)[: len(x) : every]
    return fit(frames, order, window, white)


def fit(frames: Floats, order: int, window: Floats, white: float = 1e-5) -> Floats:
    """Predictors [n, order] of frames [n, length] by the autocorrelation method."""
    length = 1 << (2 * len(window)).bit_length()
    power = np.abs(np.fft.rfft(frames * window, length)) ** 2
    products = np.fft.irfft(power, length)[:, : order + 1]
    products[:, 0] *= 1.0 + white
    return levinson(products, order)


def backward_lpc(x: Floats, order: int, window: Floats, every: int) -> Floats:
    """One-sample-ahead predictions of x by backward-adaptive linear prediction."""
    taps = np.repeat(backward_predictors(x, order, window, every), every, axis=0)[: len(x)]
    past = sliding_window_view(np.concatenate([np.zeros(order), x]), order)[: len(x), ::-1]
    return np.einsum("ti,ti->t", taps, past)


def burg(windows: Floats, order: int) -> Floats:
    """Predictors [n, order] of windows [n, length] by Burg's method (1975)."""
    forward, backward = windows[:, 1:].copy(), windows[:, :-1].copy()
    taps = np.zeros((len(windows), 0))
    for _ in range(order):
        energy = (forward**2 + backward**2).sum(1) + _TINY
        k = (2.0 * (forward * backward).sum(1) / energy)[:, None]
        taps = np.concatenate([taps - k * taps[:, ::-1], k], axis=1)
        forward, backward = forward[:, 1:] - k * backward[:, 1:], (backward - k * forward)[:, :-1]
    return taps


def extrapolate(past: Floats, taps: Floats, count: int) -> Floats:
    """The predictors [n, order] run on after past [n, at least order]: [n, count]."""
    order = taps.shape[1]
    out = np.concatenate([past[:, -order:], np.zeros((len(past), count))], axis=1)
    for t in range(order, order + count):
        out[:, t] = np.einsum("ni,ni->n", taps, out[:, t - order : t][:, ::-1])
    return out[:, order:]


def repetition(
    past: Floats, count: int, lags: Sequence[int], width: int, fade: float = 0.0
) -> Floats:
    """Pitch-synchronous repetition as in G.711 Appendix I (1999), without its overlaps.

    The lag of most normalised correlation over ``width`` samples; its last period repeated for
    10 ms, then the last two; from 10 ms on fading by ``fade`` of the start every 10 ms.
    """
    recent = past[:, -width:]
    scores: list[Floats] = []
    for lag in lags:
        earlier = past[:, -width - lag : -lag]
        scores.append((recent * earlier).sum(1) / np.sqrt((earlier**2).sum(1) + _TINY))
    lag = np.asarray(lags)[np.argmax(scores, axis=0)][:, None]
    n = np.arange(count)
    span = np.where((n < 80) | (2 * lag > past.shape[1]), lag, 2 * lag)
    copied = np.take_along_axis(past, past.shape[1] - span + n % span, axis=1)
    return copied * (1.0 - fade * np.clip((n - 80) / 80, 0.0, None)).clip(min=0.0)
