"""Calibration: do targets fall below the quantiles as often as the levels promise?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kssm.evaluation.tasks import Floats
from kssm.forecast.distribution import LEVELS


@dataclass(frozen=True)
class Calibration:
    """Counts over all scored targets, so that calibrations add up.

    Attributes:
        samples: targets counted.
        bins: [10] targets below 0.1, between 0.1 and 0.2, ... above 0.9: ten equal shares are
            ideal. Divided by ``samples`` this is the histogram of the probability integral
            transform (PIT).
        inside: targets in the closed central 80% interval.
    """

    samples: int
    bins: Floats
    inside: int

    @property
    def pit(self) -> Floats:
        """Share of the targets in each tenth of the forecast distribution [10]."""
        return self.bins / max(self.samples, 1)

    @property
    def below(self) -> Floats:
        """Share of the targets below each of the nine levels [9]."""
        return np.cumsum(self.pit)[:-1]

    @property
    def coverage(self) -> float:
        """Share of the targets inside the central 80% interval, NaN without targets."""
        return self.inside / self.samples if self.samples else float("nan")

    def __add__(self, other: Calibration) -> Calibration:
        return Calibration(
            self.samples + other.samples, self.bins + other.bins, self.inside + other.inside
        )


def calibrate(truth: Floats, quantiles: NDArray[np.float32]) -> Calibration:
    """Count targets [n, horizon] (NaN = unknown) under quantiles [n, 9, horizon].

    A target that equals several quantiles is spread evenly over the tenths that meet in it, as
    for any distribution with atoms (Czado, Gneiting and Held 2009).
    """
    known = np.isfinite(truth)
    target = truth[known]
    grid = quantiles.astype(np.float64).transpose(0, 2, 1)[known]
    low = (grid < target[:, None]).sum(axis=1)
    high = (grid <= target[:, None]).sum(axis=1)
    tenth = np.arange(len(LEVELS) + 1)
    member = (tenth >= low[:, None]) & (tenth <= high[:, None])
    bins = (member / member.sum(axis=1, keepdims=True)).sum(axis=0)
    inside = (target >= grid[:, 0]) & (target <= grid[:, -1])
    return Calibration(len(target), bins, int(inside.sum()))


def pooled(parts: Iterable[Calibration]) -> Calibration:
    """All counts together."""
    return sum(parts, Calibration(0, np.zeros(len(LEVELS) + 1), 0))
