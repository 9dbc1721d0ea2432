"""Which examples to fit the head to, and how far to go: decided on windows kept from the fit.

Two recipes compete: situations all along the series, and only the latest windows before those that
decide (what is true of the last season may not be of those before). The better one, if it is better
than no fit, is then repeated with everything known, the windows that decided included.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from kssm.forecast.head import QuantileHead
from kssm.training.examples import Examples
from kssm.training.head_fit import FitConfig, blend, crps, fit_head

SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
"""Shares of the way from the old weights to the fitted ones that are tried."""

NOTHING = "nothing"
LEAST_GAIN = 0.001  # relative, on the windows that decide
MOST_OF_IT = 0.75
"""The smallest share is taken that gives so much of the greatest gain: the rest may be luck."""
PASSES = 12  # over the examples, within these bounds of steps:
FEWEST_STEPS = 60
Progress = Callable[[float], None]


@dataclass(frozen=True)
class Material:
    """Attributes:
    everywhere: situations along each series, up to its end.
    ends: [series] samples of each before the windows that decide.
    recent: the latest windows before those; None = there is no room for any.
    validation: the windows that decide.
    """

    everywhere: Examples
    ends: Tensor
    recent: Examples | None
    validation: Examples

    def before(self) -> dict[str, Examples]:
        """What each recipe learns from for the decision."""
        found = {"everywhere": self.everywhere.until(self.ends), "recent": self.recent}
        return {name: part for name, part in found.items() if part is not None and len(part)}

    def after(self, recipe: str) -> Examples:
        """What it learns from for good."""
        return self.everywhere if recipe == "everywhere" else self.validation


@dataclass(frozen=True)
class Choice:
    """The recipe, the share of the way that was gone, the head it led to, and the CRPS on the
    windows that decided, before and with the recipe."""

    recipe: str
    share: float
    head: QuantileHead
    validation: tuple[float, float]


def choose(
    start: QuantileHead, material: Material, config: FitConfig, deadline: float, report: Progress
) -> Choice:
    """Try the recipes and repeat the best one; all by ``deadline`` (``fit_head``)."""
    recipes = material.before()
    before = crps(start, material.validation)
    best = Choice(NOTHING, 0.0, start, (before, before))
    for number, (name, examples) in enumerate(recipes.items()):
        left = len(recipes) + 1 - number
        until = time.perf_counter() + (deadline - time.perf_counter()) / left
        fitted = _fit(start, examples, config, until, _part(report, number, len(recipes) + 1))
        tried = [blend(start, fitted, share) for share in SHARES]
        scores = [crps(head, material.validation) for head in tried]
        if min(scores) < min(best.validation[1], (1.0 - LEAST_GAIN) * before):
            enough = before - MOST_OF_IT * (before - min(scores))
            place = next(i for i, after in enumerate(scores) if after <= enough)
            best = Choice(name, SHARES[place], tried[place], (before, scores[place]))
    if best.recipe == NOTHING:
        report(1.0)
        return best
    last = _part(report, len(recipes), len(recipes) + 1)
    fitted = _fit(start, material.after(best.recipe), config, deadline, last)
    return replace(best, head=blend(start, fitted, best.share))


def _fit(
    start: QuantileHead, examples: Examples, config: FitConfig, deadline: float, report: Progress
) -> QuantileHead:
    passes = PASSES * len(examples) // config.batch
    steps = min(config.steps, max(FEWEST_STEPS, passes))
    return fit_head(start, examples, replace(config, steps=steps), deadline, report)


def _part(report: Progress, number: int, count: int) -> Progress:
    """Reports of one of ``count`` equal parts."""
    return lambda share: report((number + share) / count)
