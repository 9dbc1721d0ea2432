"""The labels of the samples that come next: times continued where the file has them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from statistics import median

from kssm.cli.cells import parse_time
from kssm.cli.table import Column
from kssm.errors import InvalidInputError

MONTHS = 12
SHORTEST_MONTH, LONGEST_MONTH = timedelta(days=28), timedelta(days=31)
LAST_COMMON_DAY = 28  # of the month: every month has it


def future_labels(times: Column | None, horizon: int) -> tuple[str, list[str]]:
    """A heading and one label a step ahead: times where the file has them, else 1, 2, …

    The step is the file's median one; dates a month apart continue month by month. Raises
    ``InvalidInputError`` (``invalid_timestamps``) where the times do not grow.
    """
    if times is None or len(times.cells) <= 1:
        return "step", [str(step) for step in range(1, horizon + 1)]
    moments = [parse_time(cell) for cell in times.cells]
    known = [moment for moment in moments if moment is not None]
    if len(known) == len(moments):
        return times.name, _future_moments(known, times.cells[-1], horizon)
    return times.name, _future_numbers([float(cell) for cell in times.cells if cell], horizon)


def _future_numbers(numbers: Sequence[float], horizon: int) -> list[str]:
    step = _step([b - a for a, b in pairwise(numbers)])
    return [f"{numbers[-1] + k * step:.15g}" for k in range(1, horizon + 1)]


def _future_moments(moments: Sequence[datetime], pattern: str, horizon: int) -> list[str]:
    steps = [_difference(a, b) for a, b in pairwise(moments)]
    step = timedelta(seconds=_step([step.total_seconds() for step in steps]))
    if _is_monthly(moments, steps):
        future = [_months_later(moments[-1], k) for k in range(1, horizon + 1)]
    else:
        future = [moments[-1] + k * step for k in range(1, horizon + 1)]
    return [_format(moment, pattern) for moment in future]


def _step(steps: Sequence[float]) -> float:
    """The median step; raises where it is not positive."""
    step = median(steps)
    if step <= 0:
        message = "the times must grow from line to line"
        raise InvalidInputError(message, code="invalid_timestamps")
    return step


def _difference(earlier: datetime, later: datetime) -> timedelta:
    try:
        return later - earlier
    except TypeError as error:
        message = "times with and without a time zone are mixed"
        raise InvalidInputError(message, code="invalid_timestamps") from error


def _is_monthly(moments: Sequence[datetime], steps: Sequence[timedelta]) -> bool:
    same_day = len({moment.day for moment in moments}) == 1
    month_long = all(SHORTEST_MONTH <= step <= LONGEST_MONTH for step in steps)
    return same_day and month_long and moments[0].day <= LAST_COMMON_DAY


def _months_later(moment: datetime, months: int) -> datetime:
    index = moment.year * MONTHS + moment.month - 1 + months
    return moment.replace(year=index // MONTHS, month=index % MONTHS + 1)


def _format(moment: datetime, pattern: str) -> str:
    """``moment`` written as ``pattern`` is: a date alone, or with ``T`` or a space in between."""
    if len(pattern) == len("2024-01-01") and moment.time() == datetime.min.time():
        return moment.date().isoformat()
    return moment.isoformat(sep="T" if "T" in pattern else " ")
