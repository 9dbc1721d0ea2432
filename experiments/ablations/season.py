"""The lever `season`: time told in 24ths of a season, and a head that is a function of time.

After FlowState (Graf, Ortner, Wozniak, Pantazi 2025, arXiv 2508.05287): where a season has 288
samples, each is told as dt = 1/12, so that the recurrences see a season as they see a day of hours,
and the head's 64 intervals are 768 samples. Their decoder evaluates Legendre polynomials; here the
basis is local, a hat function at each whole interval and four below one: where dt = 1 this is the
usual head, and neighbours in time stay neighbours.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from kssm.forecast import scaler
from kssm.forecast.distribution import LEVELS
from kssm.forecast.forecaster import MAX_NORMALISED, ForecasterConfig, SignalForecaster
from kssm.forecast.head import QuantileHead
from kssm.models import State

EARLY: Final = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Knots before the first whole interval, powers of two."""

SEASON: Final = 24.0  # intervals
SMALLEST_UNIT: Final = 1 / 16
CHANNELS: Final = len(LEVELS) + 1


def unit_of(period: Tensor) -> Tensor:
    """Time between samples, in intervals, where a season has ``period`` samples (any shape)."""
    return (SEASON / period.clamp_min(1.0)).clamp(SMALLEST_UNIT, 1.0)


def hats(times: Tensor, intervals: int) -> Tensor:
    """The basis at ``times`` [...]: [..., knots], linear between knots, constant outside."""
    early = torch.arange(-len(EARLY), 0, device=times.device).float().exp2()
    whole = torch.arange(1, intervals + 1, device=times.device)
    knots = torch.cat([early, whole])
    t = times.float().clamp(knots[0], knots[-1]).unsqueeze(-1)
    above = (t > knots[1:-1]).sum(-1, keepdim=True) + 1
    left, right = knots[above - 1], knots[above]
    share = (t - left) / (right - left)
    index = torch.arange(len(knots), device=times.device)
    return torch.where(index == above, share, torch.where(index == above - 1, 1.0 - share, 0.0))


class SeasonHead(QuantileHead):
    """A ``QuantileHead`` whose outputs are the values at the knots, in its raw units."""

    def at(self, x: Tensor, last: Tensor, basis: Tensor) -> Tensor:
        """x [B, P, d_model], last [B, P], basis [B, H, knots] -> quantiles [B, P, H, 9]."""
        hidden = F.silu(self.hidden(x))
        knots, width = basis.shape[-1], self.out.in_features
        weight = basis.to(hidden.dtype) @ self.out.weight.to(hidden.dtype).view(knots, -1)
        raw = hidden @ weight.view(len(basis), -1, width).mT
        bias = (basis.unsqueeze(-1) * self.bias.view(knots, CHANNELS)).sum(-2)
        raw = raw.unflatten(-1, (-1, CHANNELS)).float() + bias.unsqueeze(1)
        increments = F.softplus(raw[..., 2:])
        median = raw[..., 0] + torch.sigmoid(raw[..., 1]) * last.unsqueeze(-1)
        return median.unsqueeze(-1) + (increments.unsqueeze(-1) * self.spread).sum(-2)


class SeasonForecaster(SignalForecaster):
    """A forecaster whose head has ``EARLY`` knots before the configuration's horizon."""

    def __init__(self, config: ForecasterConfig) -> None:
        super().__init__(config)
        knots = len(EARLY) + config.head_horizon
        self.head: SeasonHead = SeasonHead(config.backbone.d_model, config.head_hidden, knots)

    @torch.inference_mode()
    def forecast_spaced(self, hidden: Tensor, state: State, horizon: int, unit: float) -> Tensor:
        """Quantiles [B, horizon, 9] of samples ``unit`` apart.

        hidden: [B, d_model] of the last sample; state: after it. Beyond the head's intervals
        samples are missing, and the head is read again.
        """
        block = int(self.config.head_horizon / unit)
        stats = state["scaler"]
        reads = [self._at(hidden, stats, min(horizon, block), unit)]
        for start in range(block, horizon, block):
            missing = torch.full((len(stats), block), torch.nan, device=stats.device).double()
            hidden, state = self.read_on(missing, state, None, unit)
            reads.append(self._at(hidden, state["scaler"], min(horizon - start, block), unit))
        quantiles = torch.cat(reads, dim=1).double()
        return scaler.denormalise(quantiles.clamp(-MAX_NORMALISED, MAX_NORMALISED), stats)

    @torch.inference_mode()
    def read_on(
        self, values: Tensor, state: State, lengths: Tensor | None, unit: float
    ) -> tuple[Tensor, State]:
        """The hidden vector after each row's last sample [B, d_model], and the state."""
        steps = torch.full_like(values, unit)
        start = state["scaler"]
        path, final = scaler.scan(start, values, steps, lengths)
        before = torch.cat([start.unsqueeze(1), path[:, :-1]], dim=1)
        dt = None if unit == 1.0 else steps
        hidden, backbone = self._encode(values, steps, before, path, state, lengths, dt)
        end = torch.full_like(final[:, 0], values.shape[1]) if lengths is None else lengths
        last = hidden[torch.arange(len(hidden), device=hidden.device), end.long().clamp_min(1) - 1]
        return last, {"scaler": final, **backbone}

    def _at(self, hidden: Tensor, stats: Tensor, count: int, unit: float) -> Tensor:
        times = unit * torch.arange(1, count + 1, device=hidden.device)
        basis = hats(times, self.config.head_horizon).expand(len(hidden), -1, -1)
        last = scaler.normalise(stats[:, 5], stats).float()
        return self.head.at(hidden.unsqueeze(1), last.unsqueeze(1), basis).squeeze(1)
