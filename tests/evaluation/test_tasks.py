"""Evaluation tasks: window order, what is read before a window, malformed files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kssm.errors import InvalidInputError
from kssm.evaluation.tasks import load_task, task_files
from tests.evaluation.support import toy_task, write_task


def test_windows_are_ordered_by_series_then_time() -> None:
    task = toy_task()
    assert [len(c) for c in task.contexts()] == [30, 35, 20, 25]
    assert np.array_equal(task.targets()[2], task.values[60:65].astype(np.float64))


def test_parts_are_history_then_the_windows_passed_by() -> None:
    task = toy_task()
    assert [[len(p) for p in parts] for parts in task.parts(None)] == [[30, 5], [20, 5]]
    short = task.parts(8)
    assert [len(parts[0]) for parts in short] == [8, 8]
    assert np.array_equal(short[1][0], task.values[52:60].astype(np.float64))


def test_a_sample_keeps_whole_series() -> None:
    task = toy_task()
    assert task.sample(2) is task
    drawn = task.sample(1, seed=3)
    assert len(drawn.offsets) == 2
    assert any(np.array_equal(drawn.values, s, equal_nan=True) for s in task.series())
    assert np.array_equal(drawn.values, task.sample(1, seed=3).values, equal_nan=True)


def test_files_come_back_as_they_were_written(tmp_path: Path) -> None:
    loaded = load_task(write_task(tmp_path / "toy.npz"))
    assert (loaded.name, loaded.season, loaded.windows, loaded.prediction_length) == (
        "toy",
        7,
        2,
        5,
    )
    bare = load_task(write_task(tmp_path / "bare.npz", name=None, season=None))
    assert (bare.name, bare.season) == ("bare", 1)
    assert [path.name for path in task_files(tmp_path)] == ["bare.npz", "toy.npz"]


@pytest.mark.parametrize(
    "changes", [{"offsets": np.array([0, 8, 70])}, {"windows": None}, {"offsets": np.array([0])}]
)
def test_malformed_tasks(tmp_path: Path, changes: dict[str, object]) -> None:
    path = write_task(tmp_path / "toy.npz", **changes)
    with pytest.raises(InvalidInputError) as error:
        load_task(path)
    assert error.value.code == "invalid_task"


def test_what_is_not_a_task(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no task files"):
        task_files(tmp_path)
    path = tmp_path / "bad.npz"
    path.write_bytes(b"not a zip")
    with pytest.raises(InvalidInputError):
        load_task(path)
