"""Fine-tuning on one's own series in minutes on a CPU: as far as it helps on what it has not seen.

All weights are trained on what comes before the series' last fifth (``kssm.training.adapt``), and
mixed with the old ones in the share that forecasts that fifth best. Then the training goes on with
everything known, and its weights are mixed in the same share.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kssm.errors import InvalidInputError
from kssm.forecast.batch import as_series
from kssm.forecast.distribution import LEVELS
from kssm.forecast.forecaster import SignalForecaster
from kssm.training.adapt import AdaptConfig, adapt, blend
from kssm.training.assess import Origins, Windows, crps

Floats = NDArray[np.float64]
Report = Callable[[str, float], None]

LEAST_HISTORY = 32  # samples before the first window that is scored
CONTEXT = 1024  # samples read before the first window that is scored
MOST_WINDOWS = 20  # of the hold-out, scored of each series
DECIDING = 20_000  # samples forecast by the overlapping windows that decide, in all, but
FEWEST, MOST = 12, 80  # windows of each series
CALMER = 0.5  # learning rate of the second training, relative to the first
MOST_SAMPLES = 60_000  # read for a score: further series are left out
SHARES = (0.1, 0.25, 0.5, 1.0)
"""Shares of the way from the old weights to the new ones that are tried."""

WIDTHS = (0.8, 0.9, 1.1, 1.25)
"""Factors on the intervals' widths that compete with the training."""
LEAST_GAIN = 0.002  # relative, of a width
LEAST_SERIES = 30  # that decide on a width: it is a matter of frequencies


@dataclass(frozen=True)
class FinetuneConfig:
    """Attributes:
    horizon: samples ahead that the forecasts will be asked for.
    minutes: to take at most.
    holdout: share of each series, at its end, that is used for the final comparison only.
    validation: share of the rest, at its end, that decides whether and how far to go.
    adapt: of the training.
    """

    horizon: int = 24
    minutes: float = 4.0
    holdout: float = 0.1
    validation: float = 0.2
    adapt: AdaptConfig = field(default_factory=AdaptConfig)

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise InvalidInputError("the horizon must be at least 1", code="invalid_horizon")
        if not (0.0 <= self.holdout < 1.0 and 0.0 < self.validation < 1.0 and self.minutes > 0):
            message = "shares must lie in 0 ... 1, and minutes be positive"
            raise InvalidInputError(message, code="invalid_config")


@dataclass(frozen=True)
class FinetuneResult:
    """Attributes:
    share: how far the weights went from the old to the trained ones, 0 = not at all.
    width: factor on the intervals' widths instead, 1 = as they were.
    validation: CRPS before, and with the weights that had not seen these windows.
    holdout: CRPS before and after (NaN without a hold-out).
    series, samples: what was learned from.
    seconds: taken.
    """

    share: float
    width: float
    validation: tuple[float, float]
    holdout: tuple[float, float]
    series: int
    samples: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; NaN becomes None."""
        entries = asdict(self)
        for name in ("validation", "holdout"):
            before, after = (None if math.isnan(v) else v for v in entries[name])
            entries[name] = {"zero_shot": before, "finetuned": after}
        return entries


@dataclass(frozen=True)
class Split:
    """Every series that is long enough, in three parts.

    Attributes:
        whole: the series.
        known: what comes before the hold-out.
        holdout, validation: origins of the scored windows in ``whole`` and ``known``.
    """

    whole: list[Floats]
    known: list[Floats]
    holdout: list[Origins]
    validation: list[Origins]

    def fitted(self) -> list[Floats]:
        """What the fit may see: the samples before the validation windows."""
        return [x[: cuts[0]] for x, cuts in zip(self.known, self.validation, strict=True)]


def finetune(
    model: SignalForecaster,
    series: Mapping[str, Floats] | Sequence[Floats],
    config: FinetuneConfig,
    report: Report | None = None,
) -> FinetuneResult:
    """Train ``model``, in place, on series (float64, NaN = missing).

    ``report`` is told the stage and the share of it that is done.

    Raises ``InvalidInputError`` (``series_too_short``) where no series has room for a history and
    its windows, and what ``as_series`` raises.
    """
    started = time.perf_counter()
    tell = report or _silence
    values = list(series.values()) if isinstance(series, Mapping) else list(series)
    parts = split([as_series(x) for x in values], config)
    clock = _Clock(started + 60.0 * config.minutes)
    tell("scoring", 0.0)
    final = scored(parts.whole, parts.holdout, config.horizon, config.adapt.seed)
    held = clock.score(model, final)
    choice = _choose(model, parts, config, clock, tell)
    if choice.width != 1.0:
        model.load_state_dict(widen(model, choice.width).state_dict())
    if choice.share:
        calmer = replace(
            config.adapt,
            learning_rate=CALMER * config.adapt.learning_rate,
            seed=config.adapt.seed + 1,
        )
        until = clock.until(trainings=1, scores=1)
        trained = adapt(choice.trained, parts.known, config.horizon, calmer, until, _half(tell, 1))
        model.load_state_dict(blend(model, trained, choice.share).state_dict())
    model.eval()  # forgets what was compiled for the old weights
    tell("training", 1.0)
    return FinetuneResult(
        share=choice.share,
        width=choice.width,
        validation=choice.scores,
        holdout=(held, clock.score(model, final)),
        series=len(parts.known),
        samples=sum(map(len, parts.known)),
        seconds=time.perf_counter() - started,
    )


class _Choice(NamedTuple):
    """How far to go towards what was trained, or how wide to make intervals, and the CRPS on the
    windows that decided, before and with it."""

    scores: tuple[float, float]
    trained: SignalForecaster
    share: float = 0.0
    width: float = 1.0


def _choose(
    model: SignalForecaster, parts: Split, config: FinetuneConfig, clock: _Clock, tell: Report
) -> _Choice:
    """Train on what comes before the windows that decide, and mix with the old weights."""
    deciding = scored(parts.known, parts.validation, config.horizon, config.adapt.seed)
    before = clock.score(model, deciding)
    until = clock.until(trainings=2, scores=len(SHARES) + len(WIDTHS) + 1)
    trained = adapt(model, parts.fitted(), config.horizon, config.adapt, until, _half(tell, 0))
    tried = {share: clock.score(blend(model, trained, share), deciding) for share in SHARES}
    wide = WIDTHS if len(deciding.series) >= LEAST_SERIES else ()
    widths = {width: clock.score(widen(model, width), deciding) for width in wide}
    best, best_score = min(tried.items(), key=lambda item: item[1])
    width, wide_score = min(widths.items(), key=lambda item: item[1], default=(1.0, before))
    if wide_score < min(best_score, (1.0 - LEAST_GAIN) * before):
        return _Choice((before, wide_score), trained, width=width)
    if best_score < before:
        return _Choice((before, best_score), trained, share=best)
    return _Choice((before, before), trained)


@torch.no_grad()
def widen(model: SignalForecaster, factor: float) -> SignalForecaster:
    """A copy of ``model`` whose quantiles lie about ``factor`` times as far apart.

    Quantiles are ``softplus`` apart, nearly an exponential where it is small.
    """
    wide = copy.deepcopy(model)
    increments = len(LEVELS) - 1  # the last of each horizon's outputs (``QuantileHead``)
    wide.head.bias.view(model.config.head_horizon, -1)[:, -increments:] += math.log(factor)
    return wide.eval()


class _Clock:
    """Shares out the time there is: trainings get what scoring leaves."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._scoring = 0.0

    def score(self, model: SignalForecaster, windows: Windows) -> float:
        """CRPS, NaN without windows; remembers how long it took."""
        if not len(windows):
            return math.nan
        begun = time.perf_counter()
        found = crps(model, windows)
        self._scoring = max(self._scoring, time.perf_counter() - begun)
        return found

    def until(self, *, trainings: int, scores: int) -> float:
        """When the first of so many trainings must end if so many scores have to follow in all."""
        now = time.perf_counter()
        return now + max(0.0, self._deadline - now - scores * self._scoring) / trainings


def _half(tell: Report, number: int) -> Callable[[float], None]:
    """Reports of the first or second training."""
    return lambda share: tell("training", (number + share) / 2)


def _silence(_stage: str, _share: float) -> None:
    """Report nothing."""


def scored(
    series: Sequence[Floats], origins: Sequence[Origins], horizon: int, seed: int
) -> Windows:
    """The windows at the origins, each with at most ``CONTEXT`` samples before its series' first;
    of a random choice of series where all would be more than ``MOST_SAMPLES``."""
    order = np.random.default_rng(seed).permutation(len(series)).tolist()
    chosen: list[tuple[Floats, Origins]] = []
    room = MOST_SAMPLES
    for row in order:
        cuts = origins[row]
        if room > 0 and len(cuts):
            start = max(0, int(cuts[0]) - CONTEXT)
            chosen.append((series[row][start:], cuts - start))
            room -= int(cuts[-1]) - start
    return Windows([x for x, _ in chosen], [cuts for _, cuts in chosen], horizon)


def split(series: Sequence[Floats], config: FinetuneConfig) -> Split:
    """Cut hold-out and validation windows off the end of each series; raises ``series_too_short``
    where none has room for them."""
    found = Split([], [], [], [])
    for values in series:
        held = _cuts(len(values), config.holdout, config.horizon)
        known = values[: held[0]] if len(held) else values
        cuts = _deciding(len(known), config, len(series))
        if not len(cuts) or (config.holdout and not len(held)):
            continue
        found.whole.append(values)
        found.known.append(known)
        found.holdout.append(held)
        found.validation.append(cuts)
    if not found.whole:
        message = (
            f"no series has {LEAST_HISTORY} samples before its windows of {config.horizon}: "
            "give longer series, or a shorter horizon"
        )
        raise InvalidInputError(message, code="series_too_short")
    return found


def _cuts(length: int, share: float, horizon: int) -> Origins:
    """Origins of the windows in the last ``share`` of a series, at least one if there is room."""
    room = (length - LEAST_HISTORY) // horizon
    count = min(MOST_WINDOWS, max(1, int(length * share) // horizon), room) if share else 0
    return length - horizon * np.arange(count, 0, -1) if count > 0 else np.array([], np.int64)


def _deciding(length: int, config: FinetuneConfig, series: int) -> Origins:
    """Overlapping windows in the last part of a series, at least one and a half horizons long."""
    horizon = config.horizon
    most = min(MOST, max(FEWEST, DECIDING // (series * horizon)))
    stretch = max(int(length * config.validation), horizon * 3 // 2)
    stretch = min(stretch, length - LEAST_HISTORY)
    cuts = np.arange(length - stretch, length - horizon + 1, max(1, horizon // 4))
    if stretch < horizon or len(cuts) <= most:
        return cuts
    return cuts[np.linspace(0, len(cuts) - 1, most).round().astype(np.int64)]
