"""Hybrids: which layers they have, and that their layers are those of the plain models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kssm.errors import InvalidInputError
from kssm.models import KSSM, KSSMConfig
from kssm.models.hybrid import LAYERS, Hybrid, HybridConfig
from kssm.models.kssm import KSSMBlock
from kssm.models.rwkv6 import RWKV6Config
from kssm.models.stack import StackConfig
from kssm.models.transformer import TransformerBlock, TransformerConfig

SMALL_KSSM = KSSMConfig(d_inner=24, d_mlp=16, rank=3, group_size=8)


def small(pattern: tuple[str, ...], n_layers: int, **layers: StackConfig) -> HybridConfig:
    return HybridConfig(d_model=16, n_layers=n_layers, pattern=pattern, layers=layers)


def test_the_pattern_repeats() -> None:
    sizes = TransformerConfig(n_heads=2, n_kv_heads=1, head_size=4, d_mlp=8, window=5)
    config = small(("kssm", "kssm", "transformer"), 5, kssm=SMALL_KSSM, transformer=sizes)
    kinds = [type(block) for block in Hybrid(config).blocks]
    assert kinds == [KSSMBlock, KSSMBlock, TransformerBlock, KSSMBlock, KSSMBlock]
    assert config.layer(2) == TransformerConfig(
        d_model=16, n_layers=5, n_heads=2, n_kv_heads=1, head_size=4, d_mlp=8, window=5
    )


def test_state_entries_are_named_by_layer() -> None:
    config = small(("rwkv6", "kssm"), 2, rwkv6=RWKV6Config(head_size=4), kssm=SMALL_KSSM)
    spec = Hybrid(config).state_spec()
    assert list(spec) == [
        "layers.0.time_shift",
        "layers.0.channel_shift",
        "layers.0.state",
        "layers.1.window",
        "layers.1.state",
    ]
    assert spec["layers.0.state"][0] == (4, 4, 4)
    assert spec["layers.1.state"][0] == (24, 2)


def test_a_hybrid_of_kssm_alone_is_kssm() -> None:
    torch.manual_seed(0)
    hybrid = Hybrid(small(("kssm",), 2, kssm=SMALL_KSSM)).eval().requires_grad_(False)
    plain = KSSM(KSSMConfig(d_model=16, n_layers=2, d_inner=24, d_mlp=16, rank=3, group_size=8))
    plain.load_state_dict(hybrid.state_dict())
    x = torch.randn(2, 40, 16, generator=torch.Generator().manual_seed(1))
    y, state = hybrid(x)
    expected, end = plain(x)
    assert torch.equal(y, expected)
    assert state.keys() == end.keys()
    assert all(torch.equal(state[name], end[name]) for name in end)


def test_kinds_without_sizes_have_those_of_their_base_preset() -> None:
    config = HybridConfig(n_layers=2, pattern=["mamba", "s4d"])
    assert config.pattern == ("mamba", "s4d")
    assert config.layer(1) == LAYERS["s4d"](d_model=256, n_layers=2)


@pytest.mark.parametrize("kind", LAYERS)
def test_presets_exist_for_every_kind(kind: str) -> None:
    with torch.device("meta"):
        hybrid = Hybrid(HybridConfig.preset("tiny", pattern=(kind, "kssm")))
    assert len(hybrid.blocks) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"pattern": ()},
        {"pattern": "kssm"},
        {"pattern": ("kssm", "lstm")},
        {"layers": {"lstm": KSSMConfig()}},
        {"layers": {"mamba": KSSMConfig()}},
        {"n_layers": 0},
    ],
)
def test_nonsense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError) as error:
        HybridConfig(**changes)
    assert error.value.code == "invalid_config"
