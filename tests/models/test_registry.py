"""The registry: every model by name, in every size, from plain values."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

from kssm.errors import InvalidInputError
from kssm.models import KSSMConfig
from kssm.models.hybrid import HybridConfig
from kssm.models.mamba import MambaConfig
from kssm.models.registry import MODELS, PRESETS, build, config_from_mapping, name_of, preset

PARAMETERS = {"tiny": 70e3, "small": 560e3, "base": 4.5e6, "large": 27e6}


@pytest.mark.parametrize("size", PRESETS)
def test_hybrids_have_about_as_many_parameters_as_the_others(size: str) -> None:
    with torch.device("meta"):
        model = build("hybrid", size)
    assert abs(sum(p.numel() for p in model.parameters()) / PARAMETERS[size] - 1) < 0.15


@pytest.mark.parametrize("name", MODELS)
def test_the_default_size_is_base(name: str) -> None:
    with torch.device("meta"):
        built, expected = build(name), build(name, preset(name, "base"))
    assert built.state_spec() == expected.state_spec()


@pytest.mark.parametrize("name", MODELS)
def test_models_run_by_name(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, "tiny", gradient_checkpointing=True)
    assert model.gradient_checkpointing is True
    y, state = model(torch.randn(1, 3, model.d_model))
    assert torch.isfinite(y).all()
    assert state.keys() == model.state_spec().keys()


@pytest.mark.parametrize("name", MODELS)
def test_configurations_survive_json(name: str) -> None:
    config = preset(name, "small")
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    assert config_from_mapping(name, values) == config
    assert name_of(config) == name


def test_a_configuration_builds_its_model() -> None:
    model = build("kssm", KSSMConfig(d_model=8, n_layers=1, d_inner=8, rank=2, group_size=4))
    assert model.d_model == 8


def refused(code: str, *arguments: Any) -> str:
    with pytest.raises(InvalidInputError) as error:
        build(*arguments)
    assert error.value.code == code
    return error.value.message


def test_unknown_names_raise_with_the_list() -> None:
    message = refused("unknown_model", "lstm")
    assert all(name in message for name in MODELS)
    for name in MODELS:
        message = refused("unknown_preset", name, "huge")
        assert all(size in message for size in PRESETS)


def test_a_configuration_of_another_model_is_refused() -> None:
    refused("invalid_config", "kssm", MambaConfig())
    refused("invalid_config", "hybrid", MambaConfig())


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("kssm", {"width": 3}),
        ("mamba", {"d_model": "wide"}),
        ("mamba", {"d_model": 0}),
        ("hybrid", {"layers": {"kssm": {"width": 3}}}),
        ("hybrid", {"layers": {"lstm": {}}}),
        ("hybrid", {"layers": ["kssm"]}),
        ("hybrid", {"layers": {"hybrid": {}}}),
    ],
)
def test_values_are_checked(name: str, values: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError) as error:
        config_from_mapping(name, values)
    assert error.value.code in ("invalid_config", "unknown_model")


def test_hybrids_come_with_their_layers() -> None:
    config = preset("hybrid", "tiny")
    assert isinstance(config, HybridConfig)
    assert set(config.layers) == set(config.pattern)
