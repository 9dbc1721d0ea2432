"""Configuration files: round trip, files that build on others, refusal of what is unknown."""

from __future__ import annotations

from pathlib import Path

import pytest

from kssm.errors import InvalidInputError
from kssm.models.mamba import MambaConfig
from kssm.training.config import RunConfig, load_config, overlay


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[model]\nhead_horizon = 8\n[model.backbone]\nn_layers = 3\n[run]\nsteps = 7\n")
    config = load_config(path)
    assert config.model.head_horizon == 8
    assert config.model.backbone.n_layers == 3
    assert config.run.steps == 7


def test_a_file_changes_single_keys_of_its_base(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("[data]\nrows = 4\nlength = 64\nshort_length = 32\n")
    path = tmp_path / "other.toml"
    path.write_text('base = "base.toml"\n[data]\nlength = 128\n[run]\nseed = 3\n')
    config = load_config(path)
    assert (config.data.rows, config.data.length, config.run.seed) == (4, 128, 3)


def test_other_backbones_by_name(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[model.backbone]\nmodel = "mamba"\nd_model = 32\n')
    backbone = load_config(path).model.backbone
    assert isinstance(backbone, MambaConfig)
    assert backbone.d_model == 32


def test_overlay_leaves_its_arguments_alone() -> None:
    base = {"a": {"x": 1, "y": 2}, "b": 3}
    assert overlay(base, {"a": {"x": 5}, "c": 6}) == {"a": {"x": 5, "y": 2}, "b": 3, "c": 6}
    assert base == {"a": {"x": 1, "y": 2}, "b": 3}


def test_another_backbone_replaces_the_one_below() -> None:
    base = {"backbone": {"d_model": 8, "rank": 4}, "head_hidden": 3}
    change = {"backbone": {"model": "mamba", "d_model": 16}}
    assert overlay(base, change) == {**change, "head_hidden": 3}


@pytest.mark.parametrize(
    "text",
    [
        "[other]\nx = 1\n",
        "[run]\nstep = 7\n",
        "[model.backbone]\nd_inner = 65\n",
        "=",
        'base = "absent.toml"\n',
        "run = 3\n",
        '[run]\nprecision = "16"\n',
        "[average]\nshare = 0.5\n",
    ],
)
def test_malformed_config_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(InvalidInputError) as error:
        load_config(path)
    assert error.value.code == "invalid_config"


def test_impossible_settings() -> None:
    with pytest.raises(InvalidInputError):
        RunConfig(seconds=0.0)
