"""Anomaly scores: how unlikely a sample was under the forecast made before it.

A sample's tail probability (``distribution.tail_probability``) ranks samples, but it assumes normal
tails, and signals have heavier ones. ``AnomalyMonitor`` turns the stream of tails into

- probabilities that are calibrated: it learns how heavy a row's tails are, and
- a measure of sustained surprise, for what a forecast gets used to within a few samples.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kssm.forecast import scaler
from kssm.forecast.distribution import normal_tail

if TYPE_CHECKING:
    from kssm.forecast.forecaster import SignalForecaster

Floats = NDArray[np.float64]

MAX_SCORE = 12.0

OUTER_TAIL: Final = 0.2
"""Two-sided probability beyond the outer quantiles, where tails begin."""

OUTER_Z: Final = 1.2815515655446004
PRIOR_INDEX: Final = 2.5
"""Tail index of the development tasks' series, pooled: what a row starts with."""

PRIOR_WEIGHT: Final = 20.0
TAIL_MEMORY: Final = 500.0
"""Tail samples after which older ones fade."""

SURPRISE_MEMORY: Final = 32
"""Samples that the surprise is averaged over."""

CHUNK: Final = 4096


def score_from_tail(tail: Floats) -> Floats:
    """-log10 of two-sided tail probabilities, capped at 12; NaN (no score) stays NaN.

    A score of 2 is a sample that only 1 in 100 goes beyond, 3 one in 1000, and so on.
    """
    return -np.log10(np.clip(tail, 10.0**-MAX_SCORE, 1.0))


def level_tail(values: Tensor, stats: Tensor) -> Tensor:
    """Two-sided normal tail probability of values [...] among the row's recent ones.

    ``stats`` [..., 7] are the scaler's statistics before the values. NaN where there is no score.
    """
    location, scale = scaler.location_and_scale(stats)
    tail = normal_tail(((values - location) / scale).abs())
    scored = scaler.is_visible(values) & (stats[..., 0] >= scaler.WARM_UP)
    return torch.where(scored, tail, torch.nan)


class Alarm(NamedTuple):
    """What a monitor says of the last samples, each [channels]; NaN = no score.

    ``probability`` is the sample's calibrated two-sided tail probability: on clean data it is
    below p for at most about a share p of the samples. ``surprise`` is the mean over some 32
    samples of -log10 of that and of the level's tail probability, 0.87 for samples that are
    just as expected.
    """

    probability: Floats
    surprise: Floats


class AnomalyMonitor:
    """Calibrated alarms from the tails of some channels, in constant time and memory.

    Beyond the outer quantiles a distance of r outer widths has probability 0.2 r^-a. The tail
    index a is estimated from the row's own tail samples (Hill 1975: 1/a is the mean of log r),
    starting from a pooled value that counts as 20 samples.

    ``state`` [channels, 3] float64 is all there is: weight and sum of log r, and the surprise.
    It may be kept and given to another monitor.
    """

    def __init__(self, channels: int, state: Floats | None = None) -> None:
        fresh = (PRIOR_WEIGHT, PRIOR_WEIGHT / PRIOR_INDEX, 2.0 / math.log(10.0))
        self.state = np.tile(fresh, (channels, 1)) if state is None else state.copy()

    def update(self, tail: Floats, level: Floats) -> Alarm:
        """Take one sample a channel: its tail under the forecast and ``level_tail``, [channels].

        NaN (no score) leaves a channel as it is.
        """
        scored = np.isfinite(tail)
        reach = _outer_widths(np.where(scored, tail, 1.0))
        weight, excess, surprise = self.state.T
        beyond = scored & (reach > 1.0)
        heavy = OUTER_TAIL * np.maximum(reach, 1.0) ** (-weight / excess)
        probability = np.where(scored, np.where(beyond, heavy, tail), np.nan)
        fresh = score_from_tail(probability) + score_from_tail(level)
        eased = surprise + (fresh - surprise) / SURPRISE_MEMORY
        fade = np.where(weight >= TAIL_MEMORY, 1.0 - 1.0 / TAIL_MEMORY, 1.0)
        learnt = np.stack(
            [weight * fade + 1.0, excess * fade + np.log(np.maximum(reach, 1.0))], axis=1
        )
        self.state[beyond, :2] = learnt[beyond]
        usable = np.isfinite(fresh)
        self.state[usable, 2] = eased[usable]
        return Alarm(probability, np.where(usable, self.state[:, 2], np.nan))


def watch(model: SignalForecaster, values: Floats) -> Alarm:
    """The alarms of a whole row of samples [T] (NaN = missing), each [T].

    What a stream of the same samples says, to rounding.
    """
    row = torch.from_numpy(np.asarray(values, dtype=np.float64))[None].to(model.device)
    state = model.initial_state(1)
    monitor = AnomalyMonitor(1)
    alarms: list[Alarm] = []
    for part in row.split(CHUNK, dim=1):
        before = state["scaler"]
        path, _ = scaler.scan(before, part, torch.ones_like(part))
        stats = torch.cat([before.unsqueeze(1), path[:, :-1]], dim=1)
        level = level_tail(part, stats)
        state, tail = model.prefill(part, state)
        pairs = zip(tail[0].cpu().numpy(), level[0].cpu().numpy(), strict=True)
        alarms += [monitor.update(np.array([t]), np.array([v])) for t, v in pairs]
    return Alarm(*(np.concatenate(column) for column in zip(*alarms, strict=True)))


def _outer_widths(tail: Floats) -> Floats:
    """Distance from the median in widths of the outer quantile, from a normal tail."""
    below = torch.from_numpy(np.clip(tail, 1e-300, 1.0)) / 2.0
    return -torch.special.ndtri(below).numpy() / OUTER_Z
