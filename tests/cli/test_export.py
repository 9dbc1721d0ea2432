"""``kssm export``: what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from kssm.cli import main


def test_models_of_sound_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "audio.onnx"
    with pytest.raises(SystemExit) as exit_:
        main(["export", "kssm-audio", str(target)])
    assert exit_.value.code == 1
    assert "[export_unsupported]" in capsys.readouterr().err
    assert not target.exists()
