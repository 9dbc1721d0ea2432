"""One sample ahead: linear prediction from the past alone, corrected by a small network."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kssm.audio.analysis import Prediction
from kssm.audio.config import AudioConfig
from kssm.models.layers import init_linear

_PAST: Final = 32
_RESIDUALS: Final = 16
_REACH: Final = 3
_SPREAD_LIMIT: Final = 6.0


class Guess(NamedTuple):
    """Laplace distributions of samples: mean and scale, in the signal's units."""

    mean: Tensor
    scale: Tensor


class NextSample(nn.Module):
    """Predicts each sample from all before it.

    Two linear predictors that were fitted to the samples before the patch, a gate between them,
    and a correction in units of their recent errors. The network sees the last samples, the
    errors, what lies one period back, and the recurrence's output for the patch before.
    """

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.config = config
        width = config.sample_hidden
        taps = 2 * _REACH + 1
        self.seen = init_linear(_PAST + _RESIDUALS + 2 * taps + 5, width)
        self.context = init_linear(config.backbone.d_model, width)
        self.place = nn.Parameter(torch.zeros(config.patch, width))
        self.hidden = init_linear(width, width)
        self.out = init_linear(width, 3, std=0.01, bias=True)

    def forward(self, buffer: Tensor, linear: Prediction, lag: Tensor, context: Tensor) -> Guess:
        """Guesses [..., M, block] of the samples of M blocks, which start a patch.

        Args:
            buffer: [..., M, history + block] each block with what lies before it; a guess sees
                nothing of its own sample and of later ones.
            linear: [..., M] of the samples before each block.
            lag: [...] period before the patch.
            context: [..., d_model] the recurrence's output for the patch before.
        """
        at, count = self.config.history, self.config.block
        short, long, errors = self._linear(buffer, linear, at, count)
        recent = _frames(buffer, at, count, _PAST)
        level = _rms(recent) + 0.02 * linear.level[..., None] + 1e-9
        wrong = errors[..., : _RESIDUALS + count - 1].unfold(-1, _RESIDUALS, 1)
        error = _rms(wrong) + 1e-3 * linear.level[..., None] + 1e-9
        periodic, periodic_error = self._period_back(
            buffer, linear, lag[..., None].expand(buffer.shape[:-1]), at, count
        )
        columns = [
            recent / level.unsqueeze(-1),
            wrong / error.unsqueeze(-1),
            periodic / level.unsqueeze(-1),
            periodic_error / error.unsqueeze(-1),
            (short / level).unsqueeze(-1),
            ((long - short) / error).unsqueeze(-1),
            torch.log(level / linear.level[..., None]).unsqueeze(-1),
            torch.log(error / linear.level[..., None]).unsqueeze(-1),
            torch.log(error / level).unsqueeze(-1),
        ]
        seen = torch.cat(columns, dim=-1).clamp(-20.0, 20.0)
        raw = self._network(seen, context)
        mean = short + torch.sigmoid(raw[..., 0]) * (long - short) + error * raw[..., 1]
        spread = raw[..., 2].clamp(-_SPREAD_LIMIT, _SPREAD_LIMIT)
        return Guess(mean, error * torch.exp(spread))

    def _network(self, seen: Tensor, context: Tensor) -> Tensor:
        blocks, count = seen.shape[-3:-1]
        place = self.place[: blocks * count].unflatten(0, (blocks, count))
        first = self.seen(seen)
        known = self.context(context)[..., None, None, :] + place
        hidden = F.silu(first + known.to(first.dtype))
        hidden = hidden + F.silu(self.hidden(hidden))
        return self.out(hidden).float()

    def _linear(
        self, buffer: Tensor, linear: Prediction, at: int, count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Both predictions [..., count], and the short one's errors from 16 samples before."""
        past = _frames(buffer, at - _RESIDUALS, count + _RESIDUALS, self.config.orders[0])
        short = _apply(past, linear.short)
        errors = buffer[..., at - _RESIDUALS : at + count - 1] - short[..., :-1]
        long = _apply(_frames(buffer, at, count, self.config.orders[1]), linear.long)
        return short[..., _RESIDUALS:], long, errors

    def _period_back(
        self, buffer: Tensor, linear: Prediction, lag: Tensor, at: int, count: int
    ) -> tuple[Tensor, Tensor]:
        """Samples and errors of the short predictor around one lag back [..., count, taps]."""
        order = self.config.orders[0]
        reach = 2 * _REACH + count
        start = at - lag - _REACH - order
        place = start.unsqueeze(-1) + torch.arange(reach + order, device=buffer.device)
        stretch = buffer.gather(-1, place)
        past = stretch.unfold(-1, order, 1)[..., :reach, :]
        samples = stretch[..., order:]
        errors = samples - _apply(past, linear.short)
        taps = 2 * _REACH + 1
        return samples.unfold(-1, taps, 1), errors.unfold(-1, taps, 1)


def _frames(buffer: Tensor, at: int, count: int, size: int) -> Tensor:
    """The ``size`` samples before each of ``count`` positions from ``at`` on [..., count, size]."""
    return buffer[..., at - size : at + count - 1].unfold(-1, size, 1)


def _apply(past: Tensor, taps: Tensor) -> Tensor:
    """Predictions [..., n] from past [..., n, order] and taps [..., order] (latest first)."""
    with torch.autocast(past.device.type, enabled=False):
        return (past @ taps.flip(-1).unsqueeze(-1)).squeeze(-1)


def _rms(x: Tensor) -> Tensor:
    return x.square().mean(-1).sqrt()
