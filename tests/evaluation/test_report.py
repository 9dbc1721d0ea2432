"""The report: what is in it, and that it can be written and drawn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kssm.evaluation.plots import draw_report
from kssm.evaluation.report import report_task, summarise
from kssm.evaluation.scores import seasonal_naive
from kssm.evaluation.tasks import Task
from tests.evaluation.support import toy_task


def long_task() -> Task:
    values = np.random.default_rng(2).normal(size=400).astype(np.float32)
    return replace(
        toy_task(),
        name="long",
        prediction_length=70,
        windows=1,
        values=values,
        offsets=np.array([0, 200, 400]),
    )


def test_the_baseline_scores_one_against_itself() -> None:
    reports = [report_task(task, seasonal_naive(task), 64) for task in (toy_task(), long_task())]
    summary = summarise(reports)
    assert summary["geometric_mean"] == {"MASE": pytest.approx(1.0), "CRPS": pytest.approx(1.0)}
    by_horizon = summary["relative_CRPS_by_horizon"]
    assert by_horizon == {
        "1-8": {"tasks": 2, "CRPS": pytest.approx(1.0)},
        "9-24": {"tasks": 1, "CRPS": pytest.approx(1.0)},
        "25-64": {"tasks": 1, "CRPS": pytest.approx(1.0)},
        "65-128": {"tasks": 1, "CRPS": pytest.approx(1.0)},
    }


def test_direct_and_rolled_out_parts_are_counted_apart() -> None:
    task = long_task()
    report = report_task(task, seasonal_naive(task), 64)
    assert report.direct.samples == 2 * 64
    assert report.rolled_out.samples == 2 * 6
    assert report_task(toy_task(), seasonal_naive(toy_task()), 64).as_dict()["rolled_out"] is None


def test_better_forecasts_score_below_one() -> None:
    task = long_task()
    exact = np.repeat(task.targets()[:, None], 9, axis=1).astype(np.float32)
    report = report_task(task, exact, 64)
    assert report.relative == (0.0, 0.0)
    assert report.direct.coverage == 1.0


def test_it_is_written_as_json_and_drawn(tmp_path: Path) -> None:
    tasks = (toy_task(), long_task())
    summary = summarise([report_task(task, seasonal_naive(task), 64) for task in tasks])
    text = json.dumps(summary, allow_nan=False)
    draw_report(json.loads(text), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
