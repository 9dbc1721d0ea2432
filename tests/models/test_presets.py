"""Presets of equal names have about equally many parameters, whatever the model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kssm.models.mamba import Mamba, MambaConfig
from kssm.models.mamba2 import Mamba2, Mamba2Config
from kssm.models.s4d import S4D, S4DConfig
from kssm.models.stack import Stack, StackConfig

SIZES = {"tiny": 70e3, "small": 560e3, "base": 4.5e6, "large": 27e6}
MODELS = [(Mamba, MambaConfig), (Mamba2, Mamba2Config), (S4D, S4DConfig)]


@pytest.mark.parametrize(("model", "config"), MODELS)
@pytest.mark.parametrize("name", SIZES)
def test_presets_have_the_promised_sizes(
    model: Callable[[StackConfig], Stack], config: type[StackConfig], name: str
) -> None:
    with torch.device("meta"):
        built = model(config.preset(name))
    assert config.presets.keys() == SIZES.keys()
    assert abs(sum(p.numel() for p in built.parameters()) / SIZES[name] - 1) < 0.15


@pytest.mark.parametrize("config", [entry[1] for entry in MODELS])
def test_the_base_preset_is_the_default(config: type[StackConfig]) -> None:
    assert config.preset("base") == config()
