"""`kssm inspect` on a checkpoint folder."""

from __future__ import annotations

import math

import pytest

from kssm.cli import main
from kssm.cli.forecast import DEFAULT_MODEL
from kssm.cli.inspect import state_bytes
from kssm.forecast import pretrained
from kssm.forecast.testing import tiny_forecaster


def test_shows_what_the_checkpoint_holds(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    forecaster = tiny_forecaster()
    pretrained.save(forecaster, tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["inspect", str(tmp_path)])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert f"{sum(p.numel() for p in forecaster.parameters()):,}" in shown
    assert pretrained.load(tmp_path).fingerprint in shown
    assert f"{state_bytes(forecaster):,} bytes" in shown
    for name in (*forecaster.state_spec(), "backbone.d_model", "head_horizon"):
        assert name in shown


def test_state_bytes_is_the_size_of_a_row():
    forecaster = tiny_forecaster()
    row = forecaster.initial_state(1)
    assert state_bytes(forecaster) == sum(
        math.prod(entry.shape) * entry.element_size() for entry in row.values()
    )


def test_absent_checkpoint_is_a_coded_error(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["inspect", str(tmp_path / "absent")])
    assert caught.value.code == 1
    assert "error [model_not_found]" in capsys.readouterr().err


def test_the_command_line_and_the_library_agree_on_the_default():
    assert pretrained.DEFAULT == DEFAULT_MODEL
