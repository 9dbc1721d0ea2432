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


class Prediction(NamedTuple):
    """Of windows [...]:

    level: [...] root of the mean square, the last samples counting most.
    short, long: [..., order / 2], [..., order] coefficients of linear prediction, latest first.
    reflection: [..., order / 2] the short predictor's reflection coefficients.
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
    """Linear prediction after windows [..., history], latest sample last, in float32."""
    weight = _barnwell(config, windows.device)
    power = (windows.square() * weight).sum(-1) / weight.sum()
    level = power.sqrt().clamp_min(SILENCE)
    products = autocorrelation(windows / level.unsqueeze(-1) * weight.sqrt(), config.order)
    long, short, reflection = levinson(products)
    return Prediction(level, short, long, reflection)


def find_period(windows: Tensor, level: Tensor, config: AudioConfig) -> Period:
    """The period of windows [..., history] of level [...]."""
    likeness = similarity(windows / level.unsqueeze(-1), config)
    return Period(likeness, likeness.argmax(-1) + config.shortest_lag)


def autocorrelation(windows: Tensor, order: int) -> Tensor:
    """Sums of products at distances 0 ... order of windows [..., n]: [..., order + 1]."""
    size = 1 << (windows.shape[-1] + order).bit_length()
    spectrum = torch.fft.rfft(windows, size)
    return torch.fft.irfft(spectrum.abs().square(), size)[..., : order + 1]


def levinson(products: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Linear prediction from autocorrelations [..., order + 1] (Levinson 1947, Durbin 1960).

    White noise 50 dB below the signal is added. Returns the predictor of the full order, the one
    of half of it, both latest sample first, and the latter's reflection coefficients.
    """
    order = products.shape[-1] - 1
    error = products[..., 0] * (1.0 + _WHITE) + _FLOOR
    taps = products[..., :0]
    short, reflections = taps, list[Tensor]()
    for i in range(order):
        known = (taps * products[..., 1 : i + 1].flip(-1)).sum(-1)
        k = (products[..., i + 1] - known) / error
        taps = torch.cat([taps - k.unsqueeze(-1) * taps.flip(-1), k.unsqueeze(-1)], dim=-1)
        error = error * (1.0 - k.square()).clamp_min(_FLOOR)
        if i < order // 2:
            reflections.append(k)
            short = taps
    return taps, short, torch.stack(reflections, dim=-1)


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


def _barnwell(config: AudioConfig, device: torch.device) -> Tensor:
    """Weights of squared samples: n m^n, n back from the latest, squared (Barnwell 1981)."""
    n = torch.arange(config.history, 0, -1, device=device, dtype=torch.float32)
    window = n * config.memory**n
    return (window / window.max()).square()
