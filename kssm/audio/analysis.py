"""What classical signal processing says of the last samples: level, linear prediction, period."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kssm.audio.config import AudioConfig

SILENCE: Final = 1e-7
"""The smallest level: digital silence is not amplified beyond it."""
_WHITE: Final = 1e-5
_FLOOR: Final = 1e-9
_FEW: Final = 32
_STABLE: Final = 1.0 - 1e-6


class Prediction(NamedTuple):
    """Of windows [...]:

    level: [...] root of the mean square, the last samples counting most.
    short, long: [..., order] two linear predictors, latest sample first.
    reflection: [..., order] the short predictor's reflection coefficients.
    """

    level: Tensor
    short: Tensor
    long: Tensor
    reflection: Tensor


class Period(NamedTuple):
    """Of windows [...]:

    likeness: [..., lags] correlation (-1 to 1) of the last stretch with the one a lag earlier.
    lag: [...] the lag of most likeness.
    """

    likeness: Tensor
    lag: Tensor


def predict_linearly(windows: Tensor, config: AudioConfig) -> Prediction:
    """Level and both predictors after windows [..., history], latest sample last, in float32."""
    level = loudness(windows, config)
    units = windows / level.unsqueeze(-1)
    short, reflection = levinson(_products(units, config, 0))
    return Prediction(level, short, fit(units, config, 1), reflection)


def loudness(windows: Tensor, config: AudioConfig) -> Tensor:
    """Root of the weighted mean square of windows [..., history], at least ``SILENCE``: [...]."""
    weight = _barnwell(config.history, config.memories[0], windows.device).square()
    power = (windows.square() * weight).sum(-1) / weight.sum()
    return power.sqrt().clamp_min(SILENCE)


def fit(units: Tensor, config: AudioConfig, which: int) -> Tensor:
    """Predictor number ``which`` of windows [..., history] of level 1: [..., order]."""
    products = _products(units, config, which)
    few = not units.is_cuda and products.shape[:-1].numel() <= _FEW
    return solve(products) if few else levinson(products)[0]


def _products(units: Tensor, config: AudioConfig, which: int) -> Tensor:
    window = _barnwell(config.history, config.memories[which], units.device)
    return autocorrelation(units * window, config.orders[which])


def find_period(windows: Tensor, level: Tensor, config: AudioConfig) -> Period:
    """The period of windows [..., history] of level [...]."""
    likeness = similarity(windows / level.unsqueeze(-1), config)
    return Period(likeness, likeness.argmax(-1) + config.shortest_lag)


def autocorrelation(windows: Tensor, order: int) -> Tensor:
    """Sums of products at distances 0 ... order of windows [..., n]: [..., order + 1]."""
    size = 1 << (windows.shape[-1] + order).bit_length()
    spectrum = torch.fft.rfft(windows, size)
    return torch.fft.irfft(spectrum.abs().square(), size)[..., : order + 1]


def levinson(products: Tensor) -> tuple[Tensor, Tensor]:
    """Linear prediction from autocorrelations [..., order + 1] (Levinson 1947, Durbin 1960).

    White noise 50 dB below the signal is added, and reflection coefficients stay below 1, so that
    rounding cannot make the predictor unstable. Returns it, latest sample first, and them.
    """
    error = products[..., 0] * (1.0 + _WHITE) + _FLOOR
    taps = products[..., :0]
    reflections: list[Tensor] = []
    for i in range(products.shape[-1] - 1):
        known = (taps * products[..., 1 : i + 1].flip(-1)).sum(-1)
        k = ((products[..., i + 1] - known) / error).clamp(-_STABLE, _STABLE)
        taps = torch.cat([taps - k.unsqueeze(-1) * taps.flip(-1), k.unsqueeze(-1)], dim=-1)
        error = error * (1.0 - k.square())
        reflections.append(k)
    return taps, torch.stack(reflections, dim=-1)


def solve(products: Tensor) -> Tensor:
    """The predictor that ``levinson`` finds, faster for a few long ones on a CPU.

    By Cholesky factors of the normal equations; where rounding spoils them, by ``levinson``.
    """
    order = products.shape[-1] - 1
    place = torch.arange(order, device=products.device)
    matrix = products[..., (place.unsqueeze(1) - place).abs()]
    matrix.diagonal(dim1=-2, dim2=-1).add_(products[..., :1] * _WHITE + _FLOOR)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed.any()):
        return levinson(products)[0]
    return torch.cholesky_solve(products[..., 1:].unsqueeze(-1), factor).squeeze(-1)


def similarity(units: Tensor, config: AudioConfig) -> Tensor:
    """Normalised correlation of the last ``longest_lag`` samples with earlier ones [..., lags]."""
    width = config.longest_lag
    recent, both = units[..., -width:], units[..., -2 * width :]
    size = 1 << (3 * width).bit_length()
    cross = torch.fft.rfft(both, size) * torch.fft.rfft(recent, size).conj()
    at_shift = torch.fft.irfft(cross, size)[..., : width + 1]
    sums = F.pad(both.square().cumsum(-1), (1, 0))
    energy = sums[..., width:] - sums[..., : width + 1]
    scale = (energy * energy[..., -1:]).clamp_min(_FLOOR).sqrt()
    # A shift of 0 is the longest lag; lags rise as shifts fall.
    return (at_shift / scale).flip(-1)[..., config.shortest_lag :]


def _barnwell(history: int, memory: float, device: torch.device) -> Tensor:
    """Window n m^n, n back from the latest sample, of peak 1 [history] (Barnwell 1981)."""
    n = torch.arange(history, 0, -1, device=device, dtype=torch.float32)
    window = n * memory**n
    return window / window.max()
