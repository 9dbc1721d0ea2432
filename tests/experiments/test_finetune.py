"""The fine-tuning experiment runs from task files to its JSON, and never sees the windows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from experiments.finetune import __main__ as experiment
from kssm.evaluation.tasks import load_task
from kssm.forecast import pretrained
from kssm.forecast.testing import tiny_forecaster
from kssm.training.tables import TableFormat, read_series


def task_file(folder: Path) -> Path:
    folder.mkdir()
    values = np.sin(np.arange(500, dtype=np.float32) / 3) + 5
    values[20] = np.nan
    offsets = np.array([0, 300, 500])
    arrays = {"values": values, "offsets": offsets, "prediction_length": 6, "windows": 2}
    np.savez(folder / "toy.npz", **arrays, season=19, name="toy")
    return folder / "toy.npz"


def test_csv_files_hold_the_past_only(tmp_path: Path) -> None:
    task = load_task(task_file(tmp_path / "tasks"))
    experiment.write_past(task, tmp_path / "past.csv")
    found = read_series(tmp_path / "past.csv", TableFormat("value", id_column="id"))
    assert [len(found[name]) for name in ("0", "1")] == [288, 188]
    assert np.array_equal(found["0"].astype(np.float32), task.values[:288], equal_nan=True)


def test_from_tasks_to_json(tmp_path: Path) -> None:
    task_file(tmp_path / "tasks")
    pretrained.save(tiny_forecaster(), tmp_path / "start")
    folders = ["--tasks", tmp_path / "tasks", "--output", tmp_path / "out"]
    options = ["--checkpoint", tmp_path / "start", "--minutes", "0.1", "--threads", "1"]
    experiment.main([str(argument) for argument in (*folders, *options)])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["tasks"], results["better"], results["worse"]) == (1, 1, 0)
    assert results["results"][0]["crps_ratio"] < 1.0
    assert results["results"][0]["samples"] == 288 + 188
    assert pretrained.load(tmp_path / "out" / "toy" / "model").config == tiny_forecaster().config
