"""``kssm export``: what it says of the file, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from kssm.cli import main
from kssm.forecast import pretrained
from kssm.forecast.testing import tiny_forecaster
from kssm.models import KSSMConfig


@pytest.mark.slow
def test_the_state_told_is_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    backbone = KSSMConfig(12, 1, d_inner=16, d_mlp=8, rank=3, group_size=8)
    pretrained.save(tiny_forecaster(backbone=backbone, thinning=(4, 16)), tmp_path)
    target = tmp_path / "step.onnx"
    with pytest.raises(SystemExit) as exit_:
        main(["export", str(tmp_path), str(target)])
    assert exit_.value.code == 0
    session = runtime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    states = [entry for entry in session.get_inputs() if entry.name.startswith("state_")]
    told = capsys.readouterr().out
    assert len(states) == 2
    for entry in states:
        assert f"  {entry.name} [rows, {entry.shape[1]}], " in told


def test_a_folder_that_is_not_there_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["export", "kssm-signal-small", str(tmp_path / "no" / "step.onnx")])
    assert exit_.value.code == 1
    assert "[cannot_write]" in capsys.readouterr().err


def test_models_of_sound_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "audio.onnx"
    with pytest.raises(SystemExit) as exit_:
        main(["export", "kssm-audio", str(target)])
    assert exit_.value.code == 1
    assert "[export_unsupported]" in capsys.readouterr().err
    assert not target.exists()
