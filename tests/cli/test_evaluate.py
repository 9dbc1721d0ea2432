"""``kssm evaluate`` end to end with a small checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kssm.cli import main
from kssm.forecast.pretrained import save
from kssm.forecast.testing import tiny_forecaster
from tests.evaluation.support import write_task


def run(tmp_path: Path, *extra: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                "evaluate",
                *("--tasks", str(tmp_path / "tasks")),
                *("--output", str(tmp_path / "out")),
                *("--model", str(tmp_path / "model")),
                *extra,
            ]
        )
    assert stopped.value.code == 0
    return json.loads((tmp_path / "out" / "report.json").read_text())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tasks").mkdir()
    write_task(tmp_path / "tasks" / "toy.npz")
    save(tiny_forecaster(), tmp_path / "model")
    return tmp_path


def test_both_modes_give_the_same_scores(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = run(folder, "--plot")
    assert (folder / "out" / "calibration.png").is_file()
    assert "rel. CRPS" in capsys.readouterr().out
    quantiles = np.load(folder / "out" / "toy.npz")["quantiles"]
    assert quantiles.shape == (4, 9, 5)
    streamed = run(folder, "--mode", "stream")
    assert (whole["mode"], streamed["mode"]) == ("prefill", "stream")
    assert whole["fingerprint"] == streamed["fingerprint"]
    for name, value in whole["geometric_mean"].items():
        assert streamed["geometric_mean"][name] == pytest.approx(value, rel=1e-4)


def test_a_sub_sample_is_said_to_be_one(folder: Path) -> None:
    report = run(folder, "--max-series", "1")
    assert report["max_series"] == 1
    assert report["tasks"]["toy"]["series"] == 1


def test_a_folder_without_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "--tasks", str(tmp_path), "--output", str(tmp_path / "out")])
    assert stopped.value.code == 1
    assert "invalid_task" in capsys.readouterr().err


def test_weights_of_another_format_are_scored(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = {name: run(folder, "--weights", name) for name in ("float32", "int8")}
    assert [reports[name]["weights"] for name in reports] == ["float32", "int8"]
    exact, fewer = (report["geometric_mean"]["CRPS"] for report in reports.values())
    assert exact != fewer
    assert fewer == pytest.approx(exact, rel=0.02)
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "--tasks", str(folder / "tasks"), "--output", ".", "--weights", "int4"])
    assert stopped.value.code == 1
    assert "invalid_weights" in capsys.readouterr().err
