"""``kssm pretrain``: a run in two slices, scored at its end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kssm.cli import main
from kssm.forecast import pretrained
from tests.training.runs import tiny_run


def call(*arguments: str | Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", *map(str, arguments)])
    assert ended.value.code == 0


def test_tasks_that_are_not_there_are_said_before_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.toml").write_text(tiny_run(steps=16))
    run = tmp_path / "run"
    arguments = [str(tmp_path / "tiny.toml"), "--output", str(run), "--device", "cpu"]
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", *arguments, "--tasks", str(tmp_path / "none")])
    assert ended.value.code == 1
    assert "[invalid_task]" in capsys.readouterr().err
    assert not run.exists()


def test_two_slices_and_the_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.toml").write_text(tiny_run(steps=16))
    (tmp_path / "tasks").mkdir()
    values = np.sin(np.arange(90, dtype=np.float32))
    np.savez(
        tmp_path / "tasks" / "toy.npz",
        values=values,
        offsets=np.array([0, 90]),
        prediction_length=6,
        windows=2,
        season=6,
        name="toy",
    )
    run = tmp_path / "run"
    common = (tmp_path / "tiny.toml", "--output", run, "--device", "cpu", "--commit", "abc")
    call(*common, "--slice-seconds", "1e-9")
    first = capsys.readouterr().out
    assert "new weights, 1 x cpu" in first
    assert "to be continued" in first
    call(*common, "--tasks", tmp_path / "tasks")
    second = capsys.readouterr().out
    assert "resumed" in second
    assert "complete" in second
    record = json.loads((run / "run.json").read_text())
    assert record["step"] == 16
    assert record["commit"] == "abc"
    for name in ("checkpoint", "averaged"):
        assert record["scores"][name]["geometric_mean"]["CRPS"] > 0
        assert f"{name}: MASE" in second
    call(*common[:1], "--output", tmp_path / "warm", *common[3:], "--init", run / "averaged")
    assert f"weights of {run / 'averaged'}" in capsys.readouterr().out.replace("\n", "")
    assert pretrained.load(tmp_path / "warm" / "checkpoint").config.head_horizon == 8
