"""`kssm forecast` from arguments to files, around a forecaster that repeats the last value."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import kssm.forecast
from kssm.cli import main
from kssm.cli.forecast import parse_levels
from kssm.errors import InvalidInputError


class LastValue:
    """Median = the last known value; the other quantiles lie as far off as their level says."""

    @classmethod
    def from_pretrained(cls, name: str) -> LastValue:
        assert name == "kssm-signal-base"
        return cls()

    def predict_quantiles(
        self, inputs: Sequence[np.ndarray], prediction_length: int, quantile_levels: Sequence[float]
    ) -> tuple[np.ndarray, np.ndarray]:
        last = np.array([series[~np.isnan(series)][-1] for series in inputs])
        mean = np.repeat(last[:, None], prediction_length, axis=1)
        return mean[..., None] + np.asarray(quantile_levels) - 0.5, mean


@pytest.fixture(autouse=True)
def _last_value(monkeypatch):
    monkeypatch.setattr(kssm.forecast, "Forecaster", LastValue, raising=False)


@pytest.fixture
def hourly(tmp_path) -> Path:
    path = tmp_path / "hourly.csv"
    lines = [f"2024-01-01 {hour:02d}:00,{hour},{100 + hour}" for hour in range(24)]
    path.write_text("\n".join(["time,load,price", *lines]))
    return path


def run(*words: object) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    return caught.value.code


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_output_file(hourly, tmp_path, capsys):
    out = tmp_path / "out.csv"
    assert run("forecast", hourly, "--horizon", 2, "--column", "price", "--output", out) == 0
    assert rows(out) == [
        ["time", "mean", "0.1", "0.5", "0.9"],
        ["2024-01-02 00:00:00", "123", "122.6", "123", "123.4"],
        ["2024-01-02 01:00:00", "123", "122.6", "123", "123.4"],
    ]
    assert capsys.readouterr() == ("", "")


def test_pipe_gets_csv_and_the_choice_of_column_is_said(hourly, capsys):
    assert run("forecast", hourly, "--horizon", 1, "--quantiles", "0.5") == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == ["time,mean,0.5", "2024-01-02 00:00:00,23,23"]
    assert "forecast 'load'; --column takes price" in captured.err


def test_missing_samples_reach_the_model_as_nan(tmp_path, capsys):
    path = tmp_path / "gaps.csv"
    path.write_text("v\n1\n7\n\nNaN\n")
    assert run("forecast", path, "--horizon", 1, "--quantiles", "0.5") == 0
    assert capsys.readouterr().out.splitlines() == ["step,mean,0.5", "1,7,7"]


def test_plot_is_a_picture(hourly, tmp_path):
    picture = tmp_path / "out.png"
    output = tmp_path / "out.csv"
    assert run("forecast", hourly, "--horizon", 5, "--plot", picture, "--output", output) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_plot_without_matplotlib_is_said_at_once(hourly, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run("forecast", hourly, "--horizon", 5, "--plot", "out.png") == 1
    captured = capsys.readouterr()
    assert "error [missing_dependency] " in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--horizon", 0), "invalid_horizon"),
        (("--horizon", 1, "--quantiles", "1.5"), "invalid_quantiles"),
        (("--horizon", 1, "--column", "absent"), "column_not_found"),
        (("--horizon", 1, "--output", "/absent/out.csv"), "cannot_write"),
    ],
)
def test_errors_are_one_line_with_a_code(hourly, capsys, words, code):
    assert run("forecast", hourly, *words) == 1
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith(f"error [{code}] ")


def test_table_on_a_terminal(hourly, monkeypatch):
    from kssm.cli import outcome

    wide = Console(width=100, record=True)
    monkeypatch.setattr(outcome.sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(outcome, "Console", lambda: wide)
    assert run("forecast", hourly, "--horizon", 50) == 0
    text = wide.export_text()
    assert "2 more: use --output" in text
    assert "2024-01-02 00:00:00" in text


@pytest.mark.parametrize("text", ["", "a", "0.5,0.1", "0.5,0.5", "0", "1", "nan", "0.1,,0.9"])
def test_bad_levels(text):
    with pytest.raises(InvalidInputError) as caught:
        parse_levels(text)
    assert caught.value.code == "invalid_quantiles"


def test_good_levels():
    assert parse_levels("0.05, 0.5,0.95") == (0.05, 0.5, 0.95)
