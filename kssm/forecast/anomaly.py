"""Anomaly scores: how unlikely a sample was under the forecast made before it.

A sample's tail probability (``distribution.tail_probability``) ranks samples, but it assumes normal
tails, and signals have heavier ones. ``AnomalyMonitor`` turns the stream of samples and tails into

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
from kssm.forecast.native.monitor import advance_

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

FIELDS: Final = (*scaler.FIELDS, "tail_weight", "tail_excess", "surprise")
"""Order of the numbers in the last dimension of a monitor's state."""

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


def fresh_state(channels: int) -> Floats:
    """State [channels, 10] of a monitor that has seen nothing."""
    state = np.zeros((channels, len(FIELDS)))
    state[:, -3:] = PRIOR_WEIGHT, PRIOR_WEIGHT / PRIOR_INDEX, 2.0 / math.log(10.0)
    return state


class Alarm(NamedTuple):
    """What a monitor says of samples, each [..., channels]; NaN = no score.

    ``probability`` is the sample's calibrated two-sided tail probability: on clean data it is
    below p for at most about a share p of the samples. ``surprise`` is the mean over some 32
    samples of -log10 of that and of the level's tail probability, 0.87 for samples that are
    just as expected.
    """

    probability: Floats
    surprise: Floats


class AnomalyMonitor:
    """Calibrated alarms from the samples of some channels, in constant time and memory.

    Beyond the outer quantiles a distance of r outer widths has probability 0.2 r^-a. The tail
    index a is estimated from the row's own tail samples (Hill 1975: 1/a is the mean of log r),
    starting from a pooled value that counts as 20 samples.

    ``state`` [channels, 10] float64 (``FIELDS``) is all there is. It may be kept and given to
    another monitor.
    """

    def __init__(self, channels: int, state: Floats | None = None) -> None:
        self.state = fresh_state(channels) if state is None else state.copy()

    def update(self, values: Floats, tail: Floats) -> Alarm:
        """Take one sample a channel, each with its tail under the forecast before it, [channels].

        NaN (missing, or no score) leaves a channel's calibration and surprise as they are.
        """
        probability, surprise = self.watch(values[None], tail[None])
        return Alarm(probability[0], surprise[0])

    def watch(self, values: Floats, tail: Floats) -> Alarm:
        """As ``update`` sample by sample: [samples, channels] each, and so is the answer."""
        done = advance_(self.state, values, tail)
        return advance_numpy_(self.state, values, tail) if done is None else Alarm(*done)


def advance_numpy_(state: Floats, values: Floats, tail: Floats) -> Alarm:
    """``AnomalyMonitor.watch`` in numpy, in place: the reference and the fallback."""
    answers = [_advance_one_(state, x, t) for x, t in zip(values, tail, strict=True)]
    return Alarm(*map(np.stack, zip(*answers, strict=True)))


def _advance_one_(state: Floats, values: Floats, tail: Floats) -> Alarm:
    level = _level_(state[:, :-3], values)
    scored = np.isfinite(tail)
    beyond = scored & (tail < OUTER_TAIL)
    reach = np.maximum(_outer_widths(np.where(beyond, tail, OUTER_TAIL)), 1.0)
    weight, excess, surprise = state[:, -3:].T.copy()
    heavy = OUTER_TAIL * reach ** (-weight / excess)
    probability = np.where(scored, np.where(beyond, heavy, tail), np.nan)
    fresh = score_from_tail(probability) + score_from_tail(level)
    eased = surprise + (fresh - surprise) / SURPRISE_MEMORY
    fade = np.where(weight >= TAIL_MEMORY, 1.0 - 1.0 / TAIL_MEMORY, 1.0)
    learnt = np.stack([weight * fade + 1.0, excess * fade + np.log(reach)], axis=1)
    state[beyond, -3:-1] = learnt[beyond]
    usable = np.isfinite(fresh)
    state[usable, -1] = eased[usable]
    return Alarm(probability, np.where(usable, eased, np.nan))


def _level_(statistics: Floats, values: Floats) -> Floats:
    """``level_tail`` [channels]; the statistics [channels, 7] then take the values in."""
    before, samples = torch.from_numpy(statistics.copy()), torch.from_numpy(values)
    statistics[:] = scaler.update(before, samples, torch.ones_like(samples)).numpy()
    return level_tail(samples, before).numpy()


def watch(model: SignalForecaster, values: Floats) -> Alarm:
    """The alarms of a whole row of samples [T] (NaN = missing), each [T].

    What a stream of the same samples says, to rounding.
    """
    row = torch.from_numpy(np.asarray(values, dtype=np.float64))[None].to(model.device)
    state = model.initial_state(1)
    monitor = AnomalyMonitor(1)
    alarms: list[Alarm] = []
    for part in row.split(CHUNK, dim=1):
        state, tail = model.prefill(part, state)
        alarms.append(monitor.watch(part.T.cpu().numpy(), tail.T.cpu().numpy()))
    return Alarm(*(np.concatenate(column)[:, 0] for column in zip(*alarms, strict=True)))


def _outer_widths(tail: Floats) -> Floats:
    """Distance from the median in widths of the outer quantile, from a normal tail."""
    below = torch.from_numpy(np.clip(tail, 1e-300, 1.0)) / 2.0
    return -torch.special.ndtri(below).numpy() / OUTER_Z
