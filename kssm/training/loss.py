"""The training objective: pinball loss of every direct forecast along a series."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from kssm.forecast import scaler
from kssm.forecast.distribution import LEVELS
from kssm.forecast.forecaster import SignalForecaster
from kssm.forecast.head import QuantileHead

MAX_TARGET: Final = 8.0  # asinh of 1,490 scales: bounds the loss of a sample nobody can foresee
SKIPPED: Final = 4  # first samples of a series, where there is nothing to forecast from
MAX_SMOOTHNESS: Final = 16.0


class Tokens(NamedTuple):
    """What the model reads and what it should have said.

    features: [B, T, 9]; dt: [B, T] or None; last: [B, P] last visible value, normalised;
    targets: [B, P, K] normalised, NaN = unknown; weights: [B, P]. P counts the read positions.
    """

    features: Tensor
    dt: Tensor | None
    last: Tensor
    targets: Tensor
    weights: Tensor


class Spacing(NamedTuple):
    """A time unit of each row's own.

    unit: [B] time between neighbouring samples in nominal intervals; ahead: [B, K] which samples
    ahead are targets; reach: the furthest that may be.
    """

    unit: Tensor
    ahead: Tensor
    reach: int


@torch.no_grad()
def tokenise(
    values: Tensor,
    visible: Tensor,
    horizon: int,
    *,
    reads: slice,
    kept: Tensor | None = None,
    spacing: Spacing | None = None,
) -> Tokens:
    """Turn whole series into tokens and targets.

    Args:
        values: [B, L] the truth, NaN = unknown.
        visible: [B, L] which of it the model may see.
        horizon: K samples to forecast at each read position.
        reads: positions among the T tokens where forecasts are trained.
        kept: [B, T] increasing positions of the samples that arrive at all (irregular sampling,
            told to the model as dt), None = all of them.
        spacing: each row's time unit and targets, None = the interval, and the next K samples.
    """
    reach = horizon if spacing is None else spacing.reach
    series = torch.nn.functional.pad(values.double(), (0, reach), value=torch.nan)
    seen = torch.where(visible, values.double(), torch.nan)
    if kept is None:
        dt = None
        steps = torch.ones_like(seen)
        places = torch.arange(values.shape[1], device=values.device).expand_as(values)
    else:
        places = kept
        seen = seen.gather(1, kept)
        steps = torch.ones_like(seen)
        steps[:, 1:] = kept.diff(dim=1).double()
        dt = steps.float()
    ahead = (1 + torch.arange(horizon, device=values.device)).expand(len(values), -1)
    if spacing is not None:
        steps = steps * spacing.unit.unsqueeze(1).double()
        dt, ahead = steps.float(), spacing.ahead
    fresh = torch.zeros(len(seen), len(scaler.FIELDS), dtype=torch.float64, device=seen.device)
    path, _ = scaler.scan(fresh, seen, steps)
    before = torch.cat([fresh.unsqueeze(1), path[:, :-1]], dim=1)
    features = scaler.features(seen, steps, before, path)
    stats = path[:, reads]
    index = (places[:, reads].unsqueeze(-1) + ahead.unsqueeze(1)).flatten(1)
    future = series.gather(1, index).unflatten(1, (-1, ahead.shape[1]))
    location, scale = scaler.location_and_scale(stats)
    targets = torch.asinh((future - location.unsqueeze(-1)) / scale.unsqueeze(-1))
    last = scaler.normalise(stats[..., 5], stats).float()
    targets = targets.clamp(-MAX_TARGET, MAX_TARGET).float()
    return Tokens(features, dt, last, targets, _weights(stats, scale))


def _weights(stats: Tensor, scale: Tensor) -> Tensor:
    """Smooth series count more (there a good model differs from a bad one), constant ones none."""
    steps = torch.maximum(stats[..., 3].sqrt(), scale / MAX_SMOOTHNESS)
    weights = (scale / steps).clamp(1.0, MAX_SMOOTHNESS).sqrt()
    moving = stats[..., 2].sqrt() > 1e-6 * stats[..., 1].abs()
    known = stats[..., 0] >= SKIPPED
    return torch.where(moving & known, weights, 0.0).float()


class LossSums(NamedTuple):
    """Sums over a batch's reads and horizons, scalars: ``weighted`` pinball loss (times 2) and the
    ``weight`` behind it; ``plain`` pinball loss and the number of ``known`` targets."""

    weighted: Tensor
    weight: Tensor
    plain: Tensor
    known: Tensor


def read_loss(
    head: QuantileHead, hidden: Tensor, last: Tensor, targets: Tensor, weights: Tensor
) -> LossSums:
    """Pinball loss of the head's quantiles at [B, P] reads."""
    return pinball_sums(head(hidden, last), targets, weights)


def pinball_sums(quantiles: Tensor, targets: Tensor, weights: Tensor) -> LossSums:
    """Pinball loss of quantiles [B, P, K, 9]."""
    known = torch.isfinite(targets)
    error = torch.where(known, targets, 0.0).unsqueeze(-1) - quantiles
    levels = torch.tensor(LEVELS, device=error.device)
    pinball = 2.0 * torch.maximum(levels * error, (levels - 1.0) * error).mean(-1)
    weight = known * weights.unsqueeze(-1)
    return LossSums((pinball * weight).sum(), weight.sum(), (pinball * known).sum(), known.sum())


ReadLoss = Callable[[QuantileHead, Tensor, Tensor, Tensor, Tensor], LossSums]


class Objective(nn.Module):
    """A forecaster's loss as one module: what DDP wraps, one forward for one backward pass."""

    def __init__(self, model: SignalForecaster, loss: ReadLoss = read_loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, tokens: Tokens, reads: slice) -> LossSums:
        """Run the model over the tokens and score every read position."""
        embedded = self.model.embed(tokens.features).float()
        hidden, _ = self.model.backbone.scan(embedded, None, None, tokens.dt)
        head = self.model.head
        return self.loss(head, hidden[:, reads], tokens.last, tokens.targets, tokens.weights)
