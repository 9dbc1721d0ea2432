"""Training all of a forecaster's weights on a few series of one's own, for minutes on a CPU."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kssm.forecast.forecaster import SignalForecaster
from kssm.forecast.resolutions import at_one_resolution
from kssm.forecast.thinning import coarse_length
from kssm.training.loss import Objective, tokenise

Floats = NDArray[np.float64]
Progress = Callable[[float], None]

SETTLED = 128  # samples a crop from the middle of a series is read before its forecasts count
LEAST_THINNED = 96  # visible samples of a thinned copy that is learned from
MOST_ROWS = 64  # series in a batch


@dataclass(frozen=True)
class AdaptConfig:
    """Attributes:
    learning_rate: peak of Adam's, after a short warm-up; falls linearly to zero.
    steps: updates at most.
    length: samples of a crop at most.
    batch_tokens: samples of an update.
    thinned: share of the updates on thinned copies, where the forecaster reads such.
    loudness: how much loud series count: a series of deviation s has the weight s to this power.
        1 = as in the CRPS, which sums over all series; 0 = all series alike.
    clip: largest gradient norm.
    seed: of the crops.
    """

    learning_rate: float = 1.5e-4
    steps: int = 2000
    length: int = 512
    batch_tokens: int = 2048
    thinned: float = 0.33
    loudness: float = 0.5
    clip: float = 1.0
    seed: int = 0


def adapt(
    start: SignalForecaster,
    series: Sequence[Floats],
    horizon: int,
    config: AdaptConfig,
    deadline: float,
    report: Progress,
) -> SignalForecaster:
    """A copy of ``start`` trained on random crops of the series (float64, NaN = missing).

    The loss is that of pretraining, up to ``horizon`` samples ahead; whatever resolutions ``start``
    reads, crops of the series' thinned copies are learned from too, as its weights serve all.

    Args:
        deadline: ``time.perf_counter()`` at which to be done: the schedule shortens to fit.
        report: told the share that is done.
    """
    tuned = copy.deepcopy(start).requires_grad_(True).train()
    objective = Objective(at_one_resolution(tuned))
    crops = Crops(series, horizon, tuned.config.thinning, config)
    weights = list(tuned.parameters())
    optimizer = torch.optim.Adam(weights, lr=0.0, betas=(0.9, 0.95))
    begun = time.perf_counter()
    step, progress = 0, 0.0
    while progress < 1.0:
        rate = config.learning_rate * min(1.0, (step + 1) / 8) * (1.0 - progress)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        _loss(objective, crops.draw(), tuned.config.head_horizon).backward()
        torch.nn.utils.clip_grad_norm_(weights, config.clip)
        optimizer.step()
        step += 1
        used = (time.perf_counter() - begun) / max(deadline - begun, 1e-9)
        progress = max(step / config.steps, used, progress)
        report(min(progress, 1.0))
    return tuned.eval().requires_grad_(False)


@torch.no_grad()
def blend(start: SignalForecaster, end: SignalForecaster, share: float) -> SignalForecaster:
    """The forecaster whose weights lie between two, ``share`` of the way from the first.

    Source: Wortsman et al., "Robust fine-tuning of zero-shot models", 2022.
    """
    mixed = copy.deepcopy(start)
    for own, other in zip(mixed.parameters(), end.parameters(), strict=True):
        own.lerp_(other, share)
    return mixed.eval()


@dataclass(frozen=True)
class Batch:
    """values [B, L], NaN = unknown; first [B], the first position whose forecasts count; reach:
    how many samples ahead; weights [B], of the rows."""

    values: Tensor
    first: Tensor
    reach: int
    weights: Tensor


class Crops:
    """Random crops of series and of their thinned copies."""

    def __init__(
        self,
        series: Sequence[Floats],
        horizon: int,
        thinning: Sequence[int],
        config: AdaptConfig,
    ) -> None:
        self._random = np.random.default_rng(config.seed)
        self._length = min(config.length, max(map(len, series)))
        self._rows = max(1, min(MOST_ROWS, config.batch_tokens // self._length))
        self._own = _Pool(series, horizon)
        self._thinned = [
            pool
            for factor in thinning
            if (pool := _Pool(_copies(series, factor), coarse_length(horizon, factor))).series
        ]
        self._share = config.thinned if self._thinned else 0.0
        self._loudness = config.loudness
        self._usual = float(self._own.deviations.mean()) or 1.0

    def draw(self) -> Batch:
        """A batch of one pool, series drawn by their lengths."""
        pool = self._own
        if self._random.random() < self._share:
            pool = self._thinned[self._random.integers(len(self._thinned))]
        values = torch.full((self._rows, self._length), torch.nan, dtype=torch.float64)
        first = torch.empty(self._rows, dtype=torch.int64)
        weights = torch.empty(self._rows)
        for row, number in enumerate(
            self._random.choice(len(pool.series), self._rows, p=pool.odds)
        ):
            series = pool.series[number]
            start = self._start(len(series))
            part = series[max(start, 0) :][: self._length]
            values[row, : len(part)] = torch.from_numpy(part)
            first[row] = min(SETTLED if start > 0 else SETTLED // 8, self._length // 4)
            weights[row] = float(pool.deviations[number] / self._usual) ** self._loudness
        return Batch(values, first, pool.reach, weights)

    def _start(self, samples: int) -> int:
        """Where in a series of so many samples to start: up to half a crop before its end.

        Always from the first on, short series that run side by side would teach the model what
        happened to all of them so many samples after their common start.
        """
        usual = min(self._length, samples)
        return int(self._random.integers(-usual // 4, samples - usual // 2))


class _Pool:
    """Series to draw from: ``odds`` by their lengths, ``deviations``; ``reach`` samples ahead."""

    def __init__(self, series: Sequence[Floats], reach: int) -> None:
        self.series = list(series)
        self.reach = reach
        lengths = np.array([len(x) for x in series], dtype=np.float64)
        self.odds = lengths / max(lengths.sum(), 1.0)
        known = [x[np.isfinite(x)] for x in series]
        self.deviations = np.array([x.std() if len(x) else 0.0 for x in known])


def _copies(series: Sequence[Floats], factor: int) -> list[Floats]:
    """Every ``factor``-th sample from each of the first on, where that leaves enough."""
    copies = [x[start::factor] for x in series for start in range(factor)]
    return [x for x in copies if np.isfinite(x).sum() >= LEAST_THINNED]


def _loss(objective: Objective, batch: Batch, horizon: int) -> Tensor:
    """Weighted pinball loss, relative to what rows of the usual loudness would weigh."""
    length = batch.values.shape[1]
    reads = slice(int(batch.first.min()), None, 2 if length <= 256 else 4)
    tokens = tokenise(batch.values, torch.isfinite(batch.values), horizon, reads=reads)
    counted = torch.arange(length)[reads] >= batch.first.unsqueeze(1)
    plain = tokens.weights * counted
    targets = tokens.targets.clone()
    targets[..., batch.reach :] = torch.nan
    weights = plain * batch.weights.unsqueeze(1)
    sums = objective(tokens._replace(targets=targets, weights=weights), reads)
    usual = (torch.isfinite(targets).sum(-1) * plain).sum()
    return sums.weighted / usual.clamp_min(1e-9)
