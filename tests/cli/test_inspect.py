"""``kssm inspect`` on every kind of checkpoint, sound and sick."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kssm.checkpoint.health import condition, examine
from kssm.cli import main
from kssm.cli.forecast import DEFAULT_MODEL
from kssm.cli.inspect import state_bytes
from kssm.forecast import pretrained
from kssm.forecast.testing import tiny_forecaster
from kssm.language import save, save_hugging_face
from tests.language.models import BACKBONES, tiny_language_model

PNG = b"\x89PNG"


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["inspect", *arguments])
    assert caught.value.code == 0
    return capsys.readouterr().out


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def test_a_forecaster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forecaster = tiny_forecaster()
    pretrained.save(forecaster, tmp_path)
    text = shown(capsys, str(tmp_path))
    for part in (
        f"{sum(p.numel() for p in forecaster.parameters()):,}",
        pretrained.load(tmp_path).fingerprint,
        f"{state_bytes(forecaster):,} bytes",
        *forecaster.state_spec(),
        "backbone.d_model",
        "head_horizon",
        "float16 x",
    ):
        assert part in text, part


@pytest.mark.parametrize("name", BACKBONES)
def test_language_models(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    model = tiny_language_model(name)
    save(model, tmp_path, max_shard_bytes=3_000)
    text = shown(capsys, str(tmp_path))
    assert model.fingerprint in text
    assert re.search(rf"architecture +│ {name} ", text)
    count = len(model.state_dict())
    assert f"{count} of {count} tensors are sound" in text
    if name in {"transformer", "hybrid"}:
        assert "window of 24 tokens" in text


def test_a_folder_of_transformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_hugging_face(tiny_language_model("mamba2"), tmp_path, dtype=torch.bfloat16)
    text = shown(capsys, str(tmp_path))
    assert "mamba2" in text
    assert "bfloat16 x" in text


@pytest.mark.parametrize("name", ["kssm", "s4d", "hybrid"])
def test_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    pytest.importorskip("matplotlib")
    save(tiny_language_model(name), tmp_path / "model")
    path = tmp_path / "spectrum.png"
    assert str(path) in shown(capsys, str(tmp_path / "model"), "--plot", str(path))
    assert path.read_bytes().startswith(PNG)


def test_sick_weights_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrained.save(tiny_forecaster(), tmp_path, half=False)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["head.out.weight"][3:5] = 0.0
    tensors["embed.bias"][0] = torch.nan
    tensors["embed.bias"][1] = 1e9
    save_file(tensors, path)
    text = shown(capsys, str(tmp_path))
    assert f"{len(tensors) - 2} of {len(tensors)} tensors are sound" in text
    sick = {health.name: health for health in examine(tmp_path) if not health.sound}
    assert sick.keys() == {"head.out.weight", "embed.bias"}
    assert sick["head.out.weight"].dead == 2
    assert (sick["embed.bias"].non_finite, sick["embed.bias"].huge) == (1, 1)


def test_the_condition_of_odd_tensors() -> None:
    assert condition("x", torch.empty(0)).sound
    assert condition("x", torch.zeros(4)).sound
    assert condition("x", torch.tensor(3.0)).rms == 3.0
    assert condition("x", torch.full((2,), torch.inf)).non_finite == 2


def test_state_bytes_is_the_size_of_a_row() -> None:
    forecaster = tiny_forecaster()
    row = forecaster.initial_state(1)
    assert state_bytes(forecaster) == sum(
        math.prod(entry.shape) * entry.element_size() for entry in row.values()
    )


def test_absent_checkpoint_is_a_coded_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["inspect", str(tmp_path / "absent")])
    assert caught.value.code == 1
    assert "error [model_not_found]" in capsys.readouterr().err


def test_the_command_line_and_the_library_agree_on_the_default() -> None:
    assert pretrained.DEFAULT == DEFAULT_MODEL
