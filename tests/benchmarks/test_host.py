"""The engine around a model that computes nothing."""

from __future__ import annotations

import json

import pytest

from benchmarks import host


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("forecast", [False, True])
def test_a_round_is_measured_on_both_threads(channels: int, forecast: bool) -> None:
    row = host.measured(5, channels, forecast, seconds=0.0)
    assert (row["sessions"], row["channels"], row["forecast"]) == (5, channels, forecast)
    assert all(float(row[name] or 0) > 0 for name in ("caller_us", "engine_us", "round_us"))
    assert float(row["ticks"] or 0) >= 1


def test_the_last_line_is_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "relax_collector", lambda: None)  # it is the whole process's
    host.main(["--sessions", "2", "--channels", "1", "40000", "--seconds", "0"])
    table, _, line = capsys.readouterr().out.rstrip().rpartition("\n")
    report = json.loads(line)
    assert report["benchmark"] == "host"
    assert len(report["results"]) == 2  # with and without forecasts; the rest would not fit
    assert len(table.splitlines()) == 3
