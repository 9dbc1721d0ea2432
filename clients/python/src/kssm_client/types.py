"""What callers hold: forecasts, anomalies, a session's settings. Frozen, with numpy inside."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import numpy as np
import numpy.typing as npt

from kssm_client.errors import InvalidInputError

FloatArray = npt.NDArray[np.float64]
Timestamp = float | str | datetime | np.datetime64
Encoding = Literal["json", "binary"]

_LEVEL_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Anomaly:
    """How surprising a channel's newest samples were to the forecasts made before them.

    ``tail_probability`` is how often a sample so extreme is to be expected (calibrated, two-sided),
    ``score`` its -log10 (0 = expected, 3 = one in a thousand; at most 12). ``surprise`` is the
    running score: the mean over some 32 samples of how unlikely sample and level were, 0.87 at
    rest. All are of the frame's most extreme sample, and None where the server had no forecast to
    compare with (``surprise`` also from a server that has none).

    To be alarmed wrongly about once in n samples, take ``tail_probability < 1 / n`` as the alarm,
    or a ``surprise`` above its own (1 - 1 / n) quantile of a time without alarms.
    """

    score: float | None
    tail_probability: float | None
    surprise: float | None = None


def _level_index(levels: tuple[float, ...], level: float) -> int:
    for index, known in enumerate(levels):
        if math.isclose(known, level, abs_tol=_LEVEL_TOLERANCE):
            return index
    raise InvalidInputError(
        f"no quantile {level} in this forecast, it has {list(levels)}", "invalid_quantiles"
    )


@dataclass(frozen=True, slots=True, eq=False)
class Forecast:
    """The forecast after one frame.

    ``values`` is [channels, quantiles, horizon] in the signal's own units, ``levels`` names
    its second axis in ascending order, ``seq`` is the sequence number of the frame it follows.
    """

    session: str
    seq: int
    levels: tuple[float, ...]
    values: FloatArray
    anomalies: tuple[Anomaly, ...] = ()

    @property
    def channels(self) -> int:
        """Number of channels."""
        return int(self.values.shape[0])

    @property
    def horizon(self) -> int:
        """Number of samples ahead."""
        return int(self.values.shape[2])

    @property
    def median(self) -> FloatArray:
        """The 0.5 quantile, [channels, horizon]."""
        return self.quantile(0.5)

    def quantile(self, level: float) -> FloatArray:
        """One quantile, [channels, horizon]; InvalidInputError for a level not asked for."""
        return self.values[:, _level_index(self.levels, level)]

    def interval(self, coverage: float = 0.8) -> tuple[FloatArray, FloatArray]:
        """Lower and upper bound of the central interval, each [channels, horizon]."""
        tail = (1.0 - coverage) / 2.0
        return self.quantile(tail), self.quantile(1.0 - tail)


@dataclass(frozen=True, slots=True, eq=False)
class SeriesAnomaly:
    """What ``Anomaly`` says, of every sample of a series: [samples] each, NaN = none."""

    score: FloatArray
    tail_probability: FloatArray
    surprise: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class SeriesForecast:
    """A batch forecast of one series: ``values`` [quantiles, horizon], ``mean`` [horizon].

    ``anomaly`` is None unless it was asked for.
    """

    id: str
    mean: FloatArray
    levels: tuple[float, ...]
    values: FloatArray
    anomaly: SeriesAnomaly | None = None

    def quantile(self, level: float) -> FloatArray:
        """One quantile, [horizon]; InvalidInputError for a level not asked for."""
        return self.values[_level_index(self.levels, level)]


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session's settings as the server confirmed them."""

    session: str
    model: str
    channels: int
    horizon: int
    quantiles: tuple[float, ...]
    encoding: Encoding
    next_seq: int


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """What a new session is asked to be; None leaves the choice to the server."""

    channels: int = 1
    horizon: int = 24
    quantiles: tuple[float, ...] = (0.1, 0.5, 0.9)
    model: str | None = None
    sample_interval: float | None = None
    encoding: Encoding = "binary"
    prompt: FloatArray | None = field(default=None, compare=False)
    timestamps: tuple[Timestamp, ...] | None = None
