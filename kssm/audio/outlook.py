"""Many samples ahead at once: repetition, linear extrapolation, and what a network adds."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kssm.audio.analysis import find_period, fit, loudness
from kssm.audio.config import AudioConfig
from kssm.audio.next_sample import Guess
from kssm.models.layers import init_linear

_SHARPNESS: Final = 16.0
_BOUND: Final = 4.0


class Outlook(nn.Module):
    """The next ``horizon`` samples, each as a Laplace distribution.

    The past is continued periodically with every lag there is; a softmax over the lags, one for
    each patch ahead, mixes these continuations. Beside it stands a linear predictor of high order,
    run on. A network weighs both for every sample and adds its own share.
    """

    repeats: Tensor

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = config.horizon // config.patch
        width, horizon = config.outlook_hidden, config.horizon
        known = config.longest_lag + config.backbone.d_model
        self.choose = init_linear(known + config.lags, width)
        self.choice = init_linear(width, self.blocks * config.lags, std=0.01)
        self.sharpness = nn.Parameter(torch.full((self.blocks,), _SHARPNESS))
        self.mix = init_linear(known + 2 * horizon, width)
        self.deep = init_linear(width, width)
        self.out = init_linear(width, 4 * horizon, std=0.01)
        self.bias = nn.Parameter(_initial_bias(horizon))
        self.register_buffer("repeats", _repeats(config), persistent=False)

    def forward(self, window: Tensor, context: Tensor) -> Guess:
        """Guesses [R, horizon] after windows [R, history], given context [R, d_model]."""
        config = self.config
        with torch.no_grad():
            level = loudness(window, config)
            period = find_period(window, level, config)
            units = window / level.unsqueeze(-1)
            taps = fit(units, config, 2)
            extended = extrapolate(units, taps, config.horizon).clamp(-_BOUND, _BOUND)
        level = level.unsqueeze(-1)
        known = torch.cat([units[:, -config.longest_lag :], context.float()], dim=-1)
        repeated = self._repetition(units, period.likeness, known)
        seen = torch.cat([known, repeated, extended], dim=-1).clamp(-20.0, 20.0)
        hidden = F.silu(self.mix(seen))
        hidden = hidden + F.silu(self.deep(hidden))
        raw = (self.out(hidden).float() + self.bias).unflatten(-1, (4, -1))
        copied, extrapolated, own, spread = raw.unbind(-2)
        mean = copied * repeated + extrapolated * extended + own
        return Guess(mean * level, torch.exp(spread.clamp(-6.0, 6.0)) * level)

    def _repetition(self, units: Tensor, likeness: Tensor, known: Tensor) -> Tensor:
        seen = torch.cat([known, likeness], dim=-1).clamp(-20.0, 20.0)
        logits = self.choice(F.silu(self.choose(seen))).float().unflatten(-1, (self.blocks, -1))
        logits = logits + self.sharpness.unsqueeze(-1) * likeness.unsqueeze(-2)
        continued = units[:, self.repeats].unflatten(-1, (self.blocks, -1))
        with torch.autocast(units.device.type, enabled=False):
            return torch.einsum("rbl,rlbn->rbn", logits.softmax(-1), continued).flatten(1)


def extrapolate(units: Tensor, taps: Tensor, count: int) -> Tensor:
    """Linear prediction run on for ``count`` samples: units [R, n], taps [R, order] -> [R, count].

    y = L y + b with L the strictly lower band of taps and b what the known samples contribute.
    """
    order = taps.shape[-1]
    padded = F.pad(taps, (0, 1))
    n = torch.arange(count, device=taps.device)
    distance = n.unsqueeze(1) - n - 1
    band = padded[:, distance.clamp(0, order)].masked_fill(distance < 0, 0.0)
    past = F.pad(units[:, -order:], (0, order)).unfold(-1, order, 1)[:, :order].flip(-1)
    reach = min(order, count)
    known = F.pad((past * taps.unsqueeze(1)).sum(-1)[:, :reach], (0, count - reach))
    matrix = torch.eye(count, device=taps.device) - band
    solved = torch.linalg.solve_triangular(
        matrix, known.unsqueeze(-1), upper=False, unitriangular=True
    )
    return solved.squeeze(-1)


def _repeats(config: AudioConfig) -> Tensor:
    """[lags, horizon]: where in the window each lag's periodic continuation lies."""
    lag = torch.arange(config.shortest_lag, config.longest_lag + 1).unsqueeze(1)
    return config.history - lag + torch.arange(config.horizon) % lag


def _initial_bias(horizon: int) -> Tensor:
    """Mostly extrapolation, some repetition, and a spread that grows."""
    bias = torch.zeros(4, horizon)
    bias[0] = 0.2
    bias[1] = torch.linspace(0.7, 0.5, horizon)
    bias[3] = torch.linspace(-1.5, -0.7, horizon)
    return bias.flatten()
