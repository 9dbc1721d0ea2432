"""Fitting the quantile head to examples whose hidden states are known: no backbone, no scan."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kssm.forecast.distribution import LEVELS
from kssm.forecast.forecaster import MAX_NORMALISED
from kssm.forecast.head import QuantileHead
from kssm.training.examples import Examples
from kssm.training.loss import MAX_TARGET

_CHUNK = 4096
Progress = Callable[[float], None]


@dataclass(frozen=True)
class FitConfig:
    """Attributes:
    learning_rate: peak of Adam's, after a short warm-up; falls linearly to zero.
    steps: updates.
    batch: examples an update.
    clip: largest gradient norm.
    seed: of the order of the examples.
    """

    learning_rate: float = 3e-4
    steps: int = 400
    batch: int = 512
    clip: float = 1.0
    seed: int = 0


def fit_head(
    start: QuantileHead, examples: Examples, config: FitConfig, deadline: float, report: Progress
) -> QuantileHead:
    """A copy of ``start``, trained on the examples.

    The loss is the pinball loss in normalised units, as in pretraining: in the signals' own units
    a few loud stretches would be all that counts.

    Args:
        deadline: ``time.perf_counter()`` at which to be done: the schedule shortens to fit.
        report: told the share of the fit that is done.
    """
    head = copy.deepcopy(start).requires_grad_(True)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.0, betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(config.seed)
    begun, warm = time.perf_counter(), config.steps // 20
    step, progress = 0, 0.0
    while progress < 1.0:
        rate = config.learning_rate * min(1.0, (step + 1) / (warm + 1)) * (1.0 - progress)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        _normalised_loss(head, _draw(examples, config.batch, generator)).backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), config.clip)
        optimizer.step()
        step += 1
        used = (time.perf_counter() - begun) / max(deadline - begun, 1e-9)
        progress = max(step / config.steps, used, progress)
        report(min(progress, 1.0))
    return head.requires_grad_(False)


@torch.no_grad()
def crps(head: QuantileHead, examples: Examples) -> float:
    """Mean weighted quantile loss of the head's forecasts: pinball loss (times 2, mean over the
    levels) summed over all targets, by the sum of their magnitudes."""
    loss, size = 0.0, 0.0
    for start in range(0, len(examples), _CHUNK):
        part = examples[slice(start, start + _CHUNK)]
        loss += float(_pinball(head, part).sum())
        size += float(torch.nansum(part.future.abs()))
    return loss / size if size else float("nan")


@torch.no_grad()
def blend(start: QuantileHead, end: QuantileHead, share: float) -> QuantileHead:
    """The head whose weights lie between two heads', ``share`` of the way from the first.

    Source: Wortsman et al., "Robust fine-tuning of zero-shot models", 2022.
    """
    mixed = copy.deepcopy(start)
    for own, other in zip(mixed.parameters(), end.parameters(), strict=True):
        own.lerp_(other, share)
    return mixed


def _draw(examples: Examples, count: int, generator: torch.Generator) -> Examples:
    return examples[torch.randint(len(examples), (count,), generator=generator)]


def _pinball(head: QuantileHead, examples: Examples) -> Tensor:
    """[N, K] float64 loss (pinball times 2, mean over levels) in own units; unknown = 0."""
    raw = head(examples.hidden, examples.last).clamp(-MAX_NORMALISED, MAX_NORMALISED).double()
    quantiles = torch.sinh(raw) * _each(examples.scale) + _each(examples.location)
    return _loss(examples.future, quantiles)


def _normalised_loss(head: QuantileHead, examples: Examples) -> Tensor:
    """Mean over all known targets, in normalised units."""
    scaled = (examples.future - examples.location[:, None]) / examples.scale[:, None]
    targets = torch.asinh(scaled).clamp(-MAX_TARGET, MAX_TARGET).float()
    loss = _loss(targets, head(examples.hidden, examples.last))
    return loss.sum() / torch.isfinite(targets).sum().clamp_min(1)


def _loss(targets: Tensor, quantiles: Tensor) -> Tensor:
    known = torch.isfinite(targets)
    error = torch.where(known, targets, 0.0).unsqueeze(-1) - quantiles
    levels = torch.tensor(LEVELS, dtype=error.dtype)
    pinball = 2.0 * torch.maximum(levels * error, (levels - 1.0) * error).mean(-1)
    return torch.where(known, pinball, 0.0)


def _each(numbers: Tensor) -> Tensor:
    return numbers[:, None, None]
