"""The live table: truth over forecast, as sparklines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from examples.demo.scores import FloatArray, Track
from kssm_client import Forecast
from kssm_client.display import number, resample, sparkline, surprise_text

HISTORY = 32
AHEAD = 12


class View:
    """Shows a track's newest frame, as a table or as one line."""

    def __init__(
        self, names: Sequence[str], units: Sequence[str], lead: str, *, wide: bool = True
    ) -> None:
        self._names = names
        self._units = units
        self._lead = lead
        self._wide = wide

    def table(self, track: Track, title: str) -> Table:
        """What was said ``horizon`` samples before, under what then came; and what comes next."""
        table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        table.add_column("signal", min_width=9)
        table.add_column("now", justify="right", min_width=10)
        table.add_column("truth, and below it the forecast", min_width=HISTORY, no_wrap=True)
        table.add_column(f"next {self._lead}", min_width=AHEAD, no_wrap=True)
        if self._wide:
            table.add_column("ends at (80% range)", min_width=21, no_wrap=True)
            table.add_column("surprise", justify="right")
        table.add_column("skill", justify="right", min_width=5)
        for channel, name in enumerate(self._names):
            cells = self._cells(track, channel)
            table.add_row(name, *(cells if self._wide else (*cells[:3], cells[-1])))
        table.caption = f"forecast: the median said {self._lead} before"
        table.caption_justify = "left"
        return table

    def line(self, track: Track) -> str:
        """One line for logs."""
        parts: list[str] = []
        for channel, name in enumerate(self._names):
            truth, made = track.lately(channel, 1)
            said = f"(said {number(made[0])})"
            parts.append(f"{name} {number(truth[0])} {self._units[channel]} {said}")
        return " · ".join(parts)

    def _cells(self, track: Track, channel: int) -> list[str | Text]:
        forecast = track.forecasts[-1]
        truth, made = track.lately(channel, HISTORY)
        ahead = resample(forecast.median[channel], AHEAD)
        low, high = _range(truth, made, ahead)
        lines = Text(sparkline(truth, low, high) + "\n")
        lines.append(sparkline(made, low, high), style="cyan")
        return [
            f"{number(truth[-1])} {self._units[channel]}",
            lines,
            Text(sparkline(ahead, low, high), style="cyan"),
            _ending(forecast, channel),
            surprise_text(forecast.anomalies[channel]),
            _skill(track, channel),
        ]


def _range(*parts: FloatArray) -> tuple[float, float]:
    values = np.concatenate(parts)
    values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)


def _ending(forecast: Forecast, channel: int) -> str:
    low, high = forecast.interval(0.8)
    ends = (forecast.median, low, high)
    middle, bottom, top = (number(part[channel, -1]) for part in ends)
    return f"{middle} ({bottom} … {top})"


def _skill(track: Track, channel: int) -> str:
    score = track.score(channel)
    return percent(None if score is None else score.skill(score.naive_error))


def percent(share: float | None) -> str:
    """A share as a signed percentage."""
    return "-" if share is None else f"{share:+.0%}"
