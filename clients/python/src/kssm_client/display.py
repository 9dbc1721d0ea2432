"""Forecasts on a terminal: sparklines, one line a frame, or a live table."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from rich.table import Table
from rich.text import Text

from kssm_client.types import Anomaly, Forecast

_BARS = "▁▂▃▄▅▆▇█"
_ALARM = 3.0
_NOTHING = 1e-12
_HISTORY = 32
_AHEAD = 16


def sparkline(values: Iterable[float], low: float | None = None, high: float | None = None) -> str:
    """Values as bars between ``low`` and ``high`` (default: their own range); gaps as dots."""
    array = np.fromiter(values, dtype=np.float64)
    finite = array[np.isfinite(array)]
    if finite.size == 0:
        return "·" * array.size
    bottom = float(finite.min()) if low is None else low
    top = float(finite.max()) if high is None else high
    span = top - bottom if top > bottom else 1.0
    steps = np.clip((array - bottom) / span * (len(_BARS) - 1), 0, len(_BARS) - 1)
    return "".join("·" if np.isnan(step) else _BARS[round(step)] for step in steps)


def resample(values: npt.ArrayLike, width: int) -> npt.NDArray[np.float64]:
    """At most ``width`` values, evenly picked."""
    array = np.asarray(values, dtype=np.float64)
    if array.size <= width:
        return array
    return array[np.linspace(0, array.size - 1, width).round().astype(int)]


def number(value: float) -> str:
    """Four significant digits, as short as they go; what is next to nothing is 0."""
    if np.isnan(value):
        return "-"
    return "0" if abs(value) < _NOTHING else f"{value:.4g}"


class StreamView:
    """The last samples of every channel and the newest forecast."""

    def __init__(self, channels: Sequence[str], units: Sequence[str] = ()) -> None:
        self._names = list(channels)
        self._units = list(units) or [""] * len(self._names)
        self._history = [deque[float](maxlen=_HISTORY) for _ in self._names]
        self._forecast: Forecast | None = None
        self._latency = float("nan")

    def update(self, samples: npt.ArrayLike, forecast: Forecast, latency: float) -> None:
        """Take a frame [samples, channels], the forecast after it and its latency (s)."""
        for history, values in zip(self._history, np.asarray(samples, float).T, strict=True):
            history.extend(values.tolist())
        self._forecast = forecast
        self._latency = latency

    def line(self) -> str:
        """The newest frame in one line."""
        assert self._forecast is not None
        cells = (self._channel_text(index) for index in range(len(self._names)))
        head = f"#{self._forecast.seq:<5d}"
        return f"{head} {' | '.join(cells)}  {self._latency * 1e3:.1f} ms"

    def table(self, title: str) -> Table:
        """The newest frame as a table with sparklines."""
        horizon = 0 if self._forecast is None else self._forecast.horizon
        table = Table(title=title, title_justify="left")
        table.add_column("signal")
        table.add_column("now", justify="right", min_width=8)
        table.add_column("so far", min_width=_HISTORY, justify="right", no_wrap=True)
        table.add_column(f"next {horizon}", min_width=_AHEAD, no_wrap=True)
        table.add_column(f"at +{horizon} (range)", min_width=20)
        table.add_column("surprise", justify="right")
        for index, name in enumerate(self._names):
            table.add_row(name, *self._cells(index))
        return table

    def _cells(self, index: int) -> list[str | Text]:
        history = self._history[index]
        if self._forecast is None:
            return ["", "", "", "", ""]
        unit = self._units[index]
        ahead = resample(centre(self._forecast)[index], _AHEAD)
        shown = np.concatenate([np.array(history), ahead])
        finite = shown[np.isfinite(shown)]
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
        return [
            f"{number(history[-1])} {unit}".rstrip(),
            sparkline(history, low, high),
            Text(sparkline(ahead, low, high), style="cyan"),
            self._range_text(index),
            self._surprise(index),
        ]

    def _range_text(self, index: int) -> str:
        assert self._forecast is not None
        values = self._forecast.values[index, :, -1]
        middle = number(centre(self._forecast)[index, -1])
        return f"{middle} ({number(values[0])} … {number(values[-1])})"

    def _surprise(self, index: int) -> Text:
        assert self._forecast is not None
        anomalies = self._forecast.anomalies
        return surprise_text(anomalies[index] if index < len(anomalies) else None)

    def _channel_text(self, index: int) -> str:
        assert self._forecast is not None
        last = number(self._history[index][-1])
        surprise = self._surprise(index).plain
        return f"{self._names[index]} {last} -> {self._range_text(index)} surprise {surprise}"


def surprise_text(anomaly: Anomaly | None) -> Text:
    """The running surprise, in red where the newest sample alone is one in a thousand or rarer."""
    if anomaly is None or anomaly.surprise is None:
        return Text("-")
    alarming = anomaly.score is not None and anomaly.score >= _ALARM
    return Text(f"{anomaly.surprise:.1f}", style="bold red" if alarming else "")


def centre(forecast: Forecast) -> npt.NDArray[np.float64]:
    """The quantile nearest the median, [channels, horizon]."""
    nearest = min(forecast.levels, key=lambda level: abs(level - 0.5))
    return forecast.quantile(nearest)
