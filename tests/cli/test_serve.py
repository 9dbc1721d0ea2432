"""`kssm serve`: flags over environment, both checked before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

import service.server
from kssm.cli import main
from service.settings import Settings


@pytest.fixture
def started(monkeypatch) -> list[Settings]:
    seen: list[Settings] = []
    monkeypatch.setattr(service.server, "run", seen.append)
    return seen


def serve(*words: str) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        main(["serve", *words])
    return caught.value.code


def test_defaults(started):
    assert serve() == 0
    assert started == [Settings()]


def test_a_flag_wins_over_the_environment(started, monkeypatch):
    monkeypatch.setenv("KSSM_PORT", "1234")
    monkeypatch.setenv("KSSM_HOST", "0.0.0.0")
    assert serve("--port", "4321", "--model", "m", "--device", "cpu", "--store", "s") == 0
    settings = started[0]
    assert (settings.host, settings.port) == ("0.0.0.0", 4321)
    assert (settings.model, settings.device, settings.store) == ("m", "cpu", Path("s"))


@pytest.mark.parametrize(
    ("name", "value"), [("KSSM_PORTS", "8000"), ("KSSM_PORT", "many"), ("KSSM_PORT", "70000")]
)
def test_a_bad_environment_is_one_line_with_a_code(started, monkeypatch, capsys, name, value):
    monkeypatch.setenv(name, value)
    assert serve() == 1
    assert "error [invalid_settings] " in capsys.readouterr().err
    assert started == []


def test_the_weight_format_is_passed_on(started, capsys):
    assert serve("--weights", "int8") == 0
    assert started[0].weights == "int8"
    assert serve("--weights", "int4") == 1
    assert "error [invalid_settings] " in capsys.readouterr().err


def test_an_absent_model_is_one_line_with_a_code(capsys, tmp_path):
    assert serve("--model", str(tmp_path / "absent"), "--port", "0") == 1
    assert "error [model_not_found] " in capsys.readouterr().err
