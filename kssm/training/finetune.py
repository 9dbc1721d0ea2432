"""Fine-tuning on one's own series in minutes on a CPU: only the head learns, and only if it helps.

The backbone stays as it is, so its hidden states are computed once, by the compiled prefill, and
the head is fitted to them (``kssm.training.recipes``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kssm.errors import InvalidInputError
from kssm.forecast.batch import as_series
from kssm.forecast.forecaster import SignalForecaster
from kssm.training.examples import Examples, Origins, collect
from kssm.training.head_fit import FitConfig, crps
from kssm.training.hidden import HiddenReader
from kssm.training.recipes import Material, choose

Floats = NDArray[np.float64]
Report = Callable[[str, float], None]
Progress = Callable[[float], None]

LEAST_HISTORY = 32  # samples before the first window that is scored
CONTEXT = 2048  # samples read before the first window that is scored
MOST_WINDOWS = 20  # scored of each series
MOST_SCORED = 400  # series
MOST_EXAMPLES = 30_000
FIRST_ORIGIN = 64  # samples of history before the first example, or a quarter of a short series
_TOKENS_A_SECOND = 4000  # that a thread is trusted to stream
_STREAMING_SHARE = 0.4  # of the time, for the examples


@dataclass(frozen=True)
class FinetuneConfig:
    """Attributes:
    horizon: samples ahead that the forecasts will be asked for.
    minutes: to take at most.
    holdout: share of each series, at its end, that is used for the final comparison only.
    validation: share of the rest, at its end, that decides whether and how far to go.
    fit: of the head.
    """

    horizon: int = 24
    minutes: float = 3.0
    holdout: float = 0.1
    validation: float = 0.2
    fit: FitConfig = field(default_factory=FitConfig)

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise InvalidInputError("the horizon must be at least 1", code="invalid_horizon")
        if not (0.0 <= self.holdout < 1.0 and 0.0 < self.validation < 1.0 and self.minutes > 0):
            message = "shares must lie in 0 ... 1, and minutes be positive"
            raise InvalidInputError(message, code="invalid_config")


@dataclass(frozen=True)
class FinetuneResult:
    """Attributes:
    recipe: what was learned from in the end: "everywhere", "recent", or "nothing".
    share: how far the weights went from the old to the fitted ones, 0 = not at all.
    validation: CRPS before, and with the recipe before it was repeated on everything.
    holdout: CRPS before and after (NaN without a hold-out).
    series, samples, examples: what was learned from.
    seconds: taken.
    """

    recipe: str
    share: float
    validation: tuple[float, float]
    holdout: tuple[float, float]
    series: int
    samples: int
    examples: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; NaN becomes None."""
        entries = asdict(self)
        for name in ("validation", "holdout"):
            before, after = (None if math.isnan(v) else v for v in entries[name])
            entries[name] = {"zero_shot": before, "finetuned": after}
        return entries


def finetune(
    model: SignalForecaster,
    series: Mapping[str, Floats] | Sequence[Floats],
    config: FinetuneConfig,
    report: Report | None = None,
) -> FinetuneResult:
    """Fit the head of ``model``, in place, to series (float64, NaN = missing).

    ``report`` is told the stage and the share of it that is done.

    Raises ``InvalidInputError`` (``series_too_short``) where no series has room for a history and
    its windows, and what ``as_series`` raises.
    """
    started = time.perf_counter()
    tell = report or _silence
    values = list(series.values()) if isinstance(series, Mapping) else list(series)
    parts = split([as_series(x) for x in values], config)
    material = _read(model, parts, config, lambda share: tell("reading", share))
    holdout = None
    if config.holdout:
        holdout = Reading(model, config).windows(parts.whole, parts.holdout)
    tell("reading", 1.0)
    deadline = started + 60.0 * config.minutes
    choice = choose(
        model.head, material, config.fit, deadline, lambda share: tell("fitting", share)
    )
    heads = (model.head, choice.head)
    nothing = (math.nan, math.nan)
    result = FinetuneResult(
        recipe=choice.recipe,
        share=choice.share,
        validation=choice.validation,
        holdout=nothing if holdout is None else (crps(heads[0], holdout), crps(heads[1], holdout)),
        series=len(parts.known),
        samples=sum(map(len, parts.known)),
        examples=len(material.everywhere),
        seconds=time.perf_counter() - started,
    )
    model.head.load_state_dict(choice.head.state_dict())
    return result


def _silence(_stage: str, _share: float) -> None:
    """Report nothing."""


def _read(
    model: SignalForecaster, parts: Split, config: FinetuneConfig, report: Progress
) -> Material:
    """Stream what comes before the hold-out."""
    report(0.0)
    reading = Reading(model, config)
    fitted = parts.fitted()
    latest = [_cuts(len(x), config.validation, config.horizon) for x in fitted]
    recent = reading.windows(fitted, latest) if any(map(len, latest)) else None
    report(0.15)
    validation = reading.windows(parts.known, parts.validation)
    report(0.3)
    everywhere, ends = reading.everywhere(parts.known, [len(x) for x in fitted])
    report(0.9)
    return Material(everywhere, ends, recent, validation)


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


def split(series: Sequence[Floats], config: FinetuneConfig) -> Split:
    """Cut hold-out and validation windows off the end of each series; raises ``series_too_short``
    where none has room for them."""
    found = Split([], [], [], [])
    for values in series:
        held = _cuts(len(values), config.holdout, config.horizon)
        known = values[: held[0]] if len(held) else values
        cuts = _cuts(len(known), config.validation, config.horizon)
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


class Reading:
    """Streams series through the backbone, within the time there is."""

    def __init__(self, model: SignalForecaster, config: FinetuneConfig) -> None:
        self._reader = HiddenReader(model)
        self._horizon = config.horizon
        self._head_horizon = model.config.head_horizon
        seconds = 60.0 * config.minutes * _STREAMING_SHARE
        self._tokens = int(seconds * torch.get_num_threads() * _TOKENS_A_SECOND)
        self._seed = config.fit.seed

    def windows(self, series: Sequence[Floats], origins: Sequence[Origins]) -> Examples:
        """The windows at the origins, of a random choice of the series that have any."""
        able = [row for row, cuts in enumerate(origins) if len(cuts)]
        rows = [able[place] for place in self._some(len(able), MOST_SCORED)]
        starts = [max(0, int(origins[row][0]) - CONTEXT) for row in rows]
        recent = [series[row][start:] for row, start in zip(rows, starts, strict=True)]
        cuts = [origins[row] - start for row, start in zip(rows, starts, strict=True)]
        return self._collect(recent, cuts, self._horizon)

    def everywhere(
        self, series: Sequence[Floats], fitted: Sequence[int]
    ) -> tuple[Examples, Tensor]:
        """Situations all along the series, as far back as there is time for, and where in each of
        them the first ``fitted`` samples of the series end."""
        usual = min(CONTEXT, int(np.mean([len(x) for x in series])))
        rows = self._some(len(series), max(1, self._tokens // usual))
        most = self._tokens // len(rows)
        recent = [series[row][-most:] for row in rows]
        stride = max(1, sum(map(len, recent)) // MOST_EXAMPLES)
        origins = [np.arange(min(FIRST_ORIGIN, len(x) // 4), len(x), stride) for x in recent]
        ends = torch.tensor([fitted[row] - max(0, len(series[row]) - most) for row in rows])
        direct = self._collect(recent, origins, min(self._horizon, self._head_horizon))
        if self._horizon <= self._head_horizon:
            return direct, ends
        # A roll-out reads as many missing samples as it looks ahead: one a horizon.
        far = [cuts[:: -(-self._horizon // stride)] for cuts in origins]
        rolled = self._collect(recent, far, self._horizon)
        return Examples.join([direct, rolled]), ends

    def _collect(
        self, series: Sequence[Floats], origins: Sequence[Origins], horizon: int
    ) -> Examples:
        return collect(self._reader, series, origins, horizon, self._head_horizon)

    def _some(self, count: int, most: int) -> list[int]:
        if count <= most:
            return list(range(count))
        random = np.random.default_rng(self._seed)
        return sorted(random.choice(count, most, replace=False).tolist())
