"""What forecasts look like on a terminal."""

from __future__ import annotations

import io

import numpy as np
from rich.console import Console

from kssm_client.display import (
    StreamView,
    centre,
    number,
    resample,
    sparkline,
    surprise_text,
)
from kssm_client.types import Anomaly, Forecast


def forecast(score: float | None = 4.0, surprise: float | None = 1.5) -> Forecast:
    values = np.array([[[1.0, 2.0], [2.0, 4.0], [3.0, 8.0]]])
    return Forecast("s", 7, (0.1, 0.45, 0.9), values, (Anomaly(score, None, surprise),))


def test_sparklines() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([5, 5]) == "▁▁"
    assert sparkline([0, np.nan, 7]) == "▁·█"
    assert sparkline([np.nan]) == "·"
    assert sparkline([-9, 5, 99], low=0, high=10) == "▁▅█"


def test_resampling_keeps_the_ends() -> None:
    assert resample(np.arange(100), 3).tolist() == [0, 50, 99]
    assert resample([1, 2], 3).tolist() == [1, 2]


def test_numbers() -> None:
    assert [number(v) for v in (1.0, 1234.56, -8e-32, np.nan)] == ["1", "1235", "0", "-"]


def test_the_centre_is_the_level_nearest_the_median() -> None:
    np.testing.assert_array_equal(centre(forecast()), [[2.0, 4.0]])


def rendered(view: StreamView) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(view.table("title"))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_table_before_and_after_the_first_frame() -> None:
    view = StreamView(["cpu"], ["%"])
    assert "cpu" in rendered(view)
    view.update([[3.0], [8.0]], forecast(), 0.002)
    text = rendered(view)
    for part in ("8 %", "▂█", "▁▃", "4 (2 … 8)", "1.5", "at +2"):
        assert part in text
    assert view.line() == "#7     cpu 8 -> 4 (2 … 8) surprise 1.5  2.0 ms"


def test_the_surprise_is_red_where_the_sample_alone_is_rare() -> None:
    styles = [surprise_text(Anomaly(score, None, 1.5)).style for score in (3.0, 2.9, None)]
    assert styles == ["bold red", "", ""]
    assert surprise_text(None).plain == "-"


def test_no_score_is_no_surprise() -> None:
    view = StreamView(["x"])
    view.update([[np.nan]], forecast(None, None), 0.001)
    assert "surprise -" in view.line()
    assert rendered(view)
