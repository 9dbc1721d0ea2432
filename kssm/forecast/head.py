"""Quantile head: from one hidden vector to nine quantiles of each of the next K samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kssm.forecast.distribution import LEVELS, MEDIAN
from kssm.models.layers import init_linear
from kssm.quantization import QuantizedLinear

_NORMAL_STEPS = (0.2533, 0.2710, 0.3172, 0.4399)  # between standard normal deciles, outwards


class QuantileHead(nn.Module):
    """Median plus positive increments outwards, so that quantiles never cross.

    The median is the network's own output plus, by a learned gate a horizon, the last visible
    value; all in normalised units (``scaler.normalise``).
    """

    def __init__(self, d_model: int, d_hidden: int, horizon: int) -> None:
        super().__init__()
        self.horizon = horizon
        self.hidden = init_linear(d_model, d_hidden)
        self.out = init_linear(d_hidden, horizon * (len(LEVELS) + 1), std=0.02)
        self.bias = nn.Parameter(_initial_bias(horizon))
        self.spread: Tensor
        self.register_buffer("spread", _spread_matrix(), persistent=False)

    def forward(self, x: Tensor, last: Tensor, horizons: int | None = None) -> Tensor:
        """x [..., d_model], last [...] (normalised) -> quantiles [..., horizons, 9].

        ``horizons`` keeps only the first few of the head's K horizons (None = all).
        """
        keep = self.horizon if horizons is None else horizons
        rows = keep * (len(LEVELS) + 1)
        hidden = F.silu(self.hidden(x))
        raw = self._out(hidden, rows).to(self.bias.dtype) + self.bias[:rows]
        raw = raw.unflatten(-1, (keep, len(LEVELS) + 1))
        increments = F.softplus(raw[..., 2:])
        median = raw[..., 0] + torch.sigmoid(raw[..., 1]) * last.unsqueeze(-1)
        # A broadcast sum, not a matrix product: autocast would round that to bf16.
        return median.unsqueeze(-1) + (increments.unsqueeze(-1) * self.spread).sum(-2)

    def _out(self, hidden: Tensor, rows: int) -> Tensor:
        """The output layer's first ``rows`` numbers."""
        layer: nn.Module = self.out
        if isinstance(layer, QuantizedLinear):
            return layer(hidden, rows)
        return F.linear(hidden, self.out.weight[:rows])


def _spread_matrix() -> Tensor:
    """[8, 9]: how each increment moves the quantiles (rows: outwards below, then above)."""
    matrix = torch.zeros(2 * MEDIAN, len(LEVELS))
    for i in range(MEDIAN):
        matrix[i, : MEDIAN - i] = -1.0
        matrix[MEDIAN + i, MEDIAN + i + 1 :] = 1.0
    return matrix


def _initial_bias(horizon: int) -> Tensor:
    """Zero median, gate 1/2, and normal quantiles whose spread grows with the horizon."""
    bias = torch.zeros(horizon, len(LEVELS) + 1)
    for k, spread in enumerate(torch.linspace(0.3, 0.8, horizon).tolist()):
        steps = [math.log(math.expm1(spread * step)) for step in _NORMAL_STEPS]
        bias[k, 2:] = torch.tensor(steps + steps)
    return bias.flatten()
