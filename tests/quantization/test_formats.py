"""Changing a model's weight format: which layers, which errors."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from kssm.errors import InvalidInputError
from kssm.language import LanguageModel, save
from kssm.loading import load_any
from kssm.models import build
from kssm.quantization import FORMATS, WeightFormat, format_of, parse_format, quantize
from kssm.quantization.linear import QuantizedLinear
from tests.language.models import tiny_language_model, tokens


def small() -> nn.Sequential:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(8, 6, bias=False), nn.SiLU())
    return nn.Sequential(inner, nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 4, bias=False))


@pytest.mark.parametrize("weights", [f for f in FORMATS if f != "float32"])
def test_linear_layers_without_bias_are_changed(weights: WeightFormat) -> None:
    model, x = small().requires_grad_(False), torch.randn(5, 8)
    exact = model(x)
    quantize(model, weights, keep={"3"})
    assert format_of(model) == weights
    changed = {name for name, m in model.named_modules() if isinstance(m, QuantizedLinear)}
    assert changed == {"0.0"}
    torch.testing.assert_close(model(x), exact, rtol=0.02, atol=0.02)


def test_float32_changes_nothing() -> None:
    model = small()
    before = list(model.modules())
    quantize(model, "float32")
    assert list(model.modules()) == before
    assert format_of(model) == "float32"


def test_once_quantized_only_the_same_format_will_do() -> None:
    model = small()
    quantize(model, "int8")
    quantize(model, "int8")
    for other in ("float32", "float16", "bfloat16"):
        with pytest.raises(InvalidInputError) as raised:
            quantize(model, other)
        assert raised.value.code == "invalid_weights"


def test_names_of_formats() -> None:
    assert get_args(WeightFormat) == FORMATS
    assert parse_format("int8") == "int8"
    with pytest.raises(InvalidInputError) as raised:
        parse_format("int4")
    assert raised.value.code == "invalid_weights"


def test_a_state_dict_carries_bytes_and_units() -> None:
    model = small()
    quantize(model, "int8")
    other = small()
    quantize(other, "int8")
    for tensor in other.state_dict().values():
        tensor.zero_()
    other.load_state_dict(model.state_dict())
    x = torch.randn(3, 8)
    assert torch.equal(other(x), model(x))
    assert model.state_dict()["3.weight"].dtype == torch.int8
    assert model.state_dict()["3.unit"].shape == (4,)


@pytest.mark.parametrize("name", ["kssm", "mamba2", "rwkv6", "transformer"])
@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_sequence_models_stay_close(name: str, weights: WeightFormat) -> None:
    torch.manual_seed(0)
    model = build(name, "tiny").eval().requires_grad_(False)
    x = torch.randn(2, 60, model.d_model, generator=torch.Generator().manual_seed(1))
    exact, _ = model(x)
    quantize(model, weights)
    y, _ = model(x)
    assert torch.linalg.norm(y - exact) < 0.02 * torch.linalg.norm(exact)


@pytest.mark.parametrize("tied", [False, True])
def test_language_models_are_loaded_in_any_format(tmp_path: Path, tied: bool) -> None:
    model = tiny_language_model(tied=tied)
    save(model, tmp_path)
    fewer = load_any(tmp_path, weights="int8")
    assert isinstance(fewer, LanguageModel)
    assert format_of(fewer) == "int8"
    assert format_of(load_any(tmp_path)) == "float32"
    prompt = tokens(2, 20)
    exact, close = (m.logits(m.encode(prompt, None, None)[0]) for m in (model, fewer))
    assert torch.linalg.norm(close - exact) < 0.03 * torch.linalg.norm(exact)
