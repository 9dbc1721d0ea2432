"""Training of the lever `season`: which unit of time each row is told, and what it forecasts."""

from __future__ import annotations

import random
from typing import Any, Final, NamedTuple, cast

import torch
from torch import Tensor

from experiments.ablations.season import (
    SMALLEST_UNIT,
    SeasonForecaster,
    SeasonHead,
    hats,
    unit_of,
)
from kssm.training.loss import LossSums, Objective, Spacing, Tokens, pinball_sums, tokenise
from kssm.training.mixture import TrainingBatch
from kssm.training.pretrain import Trainer

NEAR: Final = 16  # samples ahead that are always targets
FEWEST_CYCLES: Final = 3
SHORTEST_PERIOD: Final = 4.0
JITTER: Final = 0.35  # of a told unit, in its logarithm
TOLD_SHARE: Final = 0.6  # rows told their season; of the others most are told nothing
GUESSED_SHARE: Final = 0.15  # rows told some unit or other


def dominant_period(values: Tensor) -> Tensor:
    """The period [B] in samples of the strongest rhythm of rows [B, L] (NaN = missing).

    The peak of power times frequency, so that a random walk has no preferred one; at least three
    cycles of it are in the row.
    """
    length = values.shape[1]
    known = values.isfinite()
    x = torch.where(known, values, 0.0).float()
    scale = x.abs().amax(1, keepdim=True).clamp_min(1e-30)
    x = x / scale
    time = torch.linspace(-1.0, 1.0, length, device=x.device)
    count = known.sum(1, keepdim=True).clamp_min(1)
    x = torch.where(known, x - x.sum(1, keepdim=True) / count, 0.0)
    slope = (x * time).sum(1, keepdim=True) / (known * time.square()).sum(1, keepdim=True)
    x = torch.where(known, x - slope * time, 0.0)
    window = torch.hann_window(length, periodic=False, device=x.device)
    power = torch.fft.rfft(x * window).abs().square()
    last = min(power.shape[1] - 1, int(length / SHORTEST_PERIOD))
    frequency = torch.arange(FEWEST_CYCLES, last + 1, device=x.device)
    best = (power[:, FEWEST_CYCLES : last + 1] * frequency).argmax(1)
    return length / (best + FEWEST_CYCLES).double()


def told_units(values: Tensor, generator: torch.Generator) -> Tensor:
    """Time between samples in intervals [B], as a row is told it: by its season or otherwise."""
    draw = torch.rand(3, len(values), generator=generator, device=values.device)
    own = unit_of(dominant_period(values)).float()
    jittered = (own * torch.exp(JITTER * (2.0 * draw[0] - 1.0))).clamp(SMALLEST_UNIT, 1.0)
    told = torch.where(own < 1.0, jittered, 1.0)
    guess = SMALLEST_UNIT ** draw[2]
    other = torch.where(draw[1] < TOLD_SHARE + GUESSED_SHARE, guess, 1.0)
    return torch.where(draw[1] < TOLD_SHARE, told, other)


def targets_ahead(unit: Tensor, horizon: int, generator: torch.Generator) -> Tensor:
    """Which samples ahead are targets [B, horizon]: the nearest, and others spread over the reach
    of ``horizon`` intervals, one from each of as many equal parts."""
    near = min(NEAR, horizon // 2)
    parts = horizon - near
    draw = torch.rand(len(unit), parts, generator=generator, device=unit.device)
    reach = (horizon / unit).floor().unsqueeze(1)
    place = torch.arange(parts, device=unit.device) + (1.0 - draw)  # (0, 1] into each part
    far = near + torch.ceil(place / parts * (reach - near))
    close = torch.arange(1, near + 1, device=unit.device).expand(len(unit), -1)
    return torch.cat([close, far.long().clamp_min(near + 1)], dim=1)


class SeasonTokens(NamedTuple):
    """``Tokens``, and the basis at their targets [B, K, knots]."""

    plain: Tokens
    basis: Tensor


class SeasonObjective(Objective):
    """The pinball loss at each row's own times."""

    def __init__(self, model: SeasonForecaster) -> None:
        super().__init__(model, cast("Any", season_loss))

    def forward(self, tokens: Any, reads: slice) -> LossSums:
        """As ``Objective.forward``, for ``SeasonTokens``."""
        plain: Tokens = tokens.plain
        embedded = self.model.embed(plain.features).float()
        hidden, _ = self.model.backbone.scan(embedded, None, None, plain.dt)
        loss: Any = self.loss
        seen = hidden[:, reads]
        return loss(self.model.head, seen, plain.last, plain.targets, plain.weights, tokens.basis)


def season_loss(
    head: SeasonHead, hidden: Tensor, last: Tensor, targets: Tensor, weights: Tensor, basis: Tensor
) -> LossSums:
    """``read_loss`` at the times of ``basis``."""
    return pinball_sums(head.at(hidden, last, basis), targets, weights)


class SeasonTrainer(Trainer):
    """A ``Trainer`` whose rows have time units of their own."""

    def new_model(self) -> SeasonForecaster:
        return SeasonForecaster(self.config.model)

    def new_objective(self) -> SeasonObjective:
        return SeasonObjective(cast("SeasonForecaster", self.model))

    def tokens(self, batch: TrainingBatch, reads: slice, kept: Tensor | None) -> Any:
        """``SeasonTokens`` of a batch."""
        horizon = self.config.model.head_horizon
        seed = f"{self.config.run.seed}/{self.fabric.global_rank}/{self.step}/season"
        generator = torch.Generator(self.device)
        generator.manual_seed(random.Random(seed).getrandbits(62))
        unit = told_units(batch.values, generator)
        ahead = targets_ahead(unit, horizon, generator)
        spacing = Spacing(unit, ahead, int(horizon / SMALLEST_UNIT))
        plain = tokenise(
            batch.values, batch.visible, horizon, reads=reads, kept=kept, spacing=spacing
        )
        return SeasonTokens(plain, hats(unit.unsqueeze(1) * ahead, horizon))
