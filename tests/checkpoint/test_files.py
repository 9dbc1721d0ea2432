"""Checkpoint folders: exact round trips, and one error that names every problem."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kssm.checkpoint.precision import matrix_names
from kssm.errors import CheckpointError, NotFoundError
from kssm.forecast import pretrained
from kssm.forecast.testing import tiny_forecaster


def test_round_trip_is_exact_in_full_precision(tmp_path: Path) -> None:
    model = tiny_forecaster()
    pretrained.save(model, tmp_path, half=False)
    loaded = pretrained.load(tmp_path)
    assert loaded.config == model.config
    assert loaded.fingerprint == model.fingerprint
    assert not loaded.training


def test_half_precision_halves_the_matrices_of_layers_only(tmp_path: Path) -> None:
    model = tiny_forecaster()
    pretrained.save(model, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    halved = {name for name, tensor in stored.items() if tensor.dtype == torch.float16}
    assert halved == matrix_names(model)
    assert "backbone.blocks.0.in_proj.weight" in halved
    assert stored["backbone.blocks.0.conv.weight"].dtype == torch.float32
    loaded = pretrained.load(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.allclose(loaded.state_dict()[name], tensor, rtol=1e-3, atol=1e-6)


def test_the_umask_rules_who_may_read(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        pretrained.save(tiny_forecaster(), tmp_path)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def test_every_problem_is_named_in_one_error(tmp_path: Path) -> None:
    pretrained.save(tiny_forecaster(), tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["embed.bias"]
    tensors["extra"] = torch.zeros(1)
    tensors["head.bias"] = tensors["head.bias"][:-1].contiguous()
    tensors["embed.weight"][0, 0] = torch.inf
    tensors["backbone.norm.weight"] = torch.ones(32, dtype=torch.int32)
    save_file(tensors, path)
    with pytest.raises(CheckpointError) as error:
        pretrained.load(tmp_path)
    for part in (
        "missing embed.bias",
        "unexpected extra",
        "head.bias has shape",
        "embed.weight holds non-finite",
        "backbone.norm.weight has dtype",
    ):
        assert part in error.value.message


@pytest.mark.parametrize("content", ["", "[]", "{", '{"architecture": "other"}'])
def test_malformed_config(tmp_path: Path, content: str) -> None:
    pretrained.save(tiny_forecaster(), tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError):
        pretrained.load(tmp_path)


def test_unknown_config_key(tmp_path: Path) -> None:
    pretrained.save(tiny_forecaster(), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"head_hidden"', '"head_width"'))
    with pytest.raises(CheckpointError, match="head_width"):
        pretrained.load(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"\xff" * 64, b"\x08\0\0\0\0\0\0\0{}      "])
def test_damaged_weights(tmp_path: Path, damage: bytes) -> None:
    pretrained.save(tiny_forecaster(), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(damage)
    with pytest.raises(CheckpointError):
        pretrained.load(tmp_path)


def test_unknown_name_lists_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as error:
        pretrained.load("no-such-model")
    assert error.value.code == "model_not_found"
    with pytest.raises(NotFoundError):
        pretrained.load(tmp_path)
