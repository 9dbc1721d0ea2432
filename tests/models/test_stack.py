"""What all stacks promise beside the contract: presets, half-precision weights, sick rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import nn

from kssm.models import build
from kssm.models.kssm import KSSM, KSSMConfig
from kssm.models.mamba import Mamba, MambaConfig
from kssm.models.mamba2 import Mamba2, Mamba2Config
from kssm.models.rwkv6 import RWKV6, RWKV6Config
from kssm.models.s4d import S4D, S4DConfig
from kssm.models.stack import Block, Stack, StackConfig
from kssm.models.transformer import Transformer, TransformerConfig

SIZES = {"tiny": 70e3, "small": 560e3, "base": 4.5e6, "large": 27e6}
MODELS = [
    *((KSSM, KSSMConfig), (Mamba, MambaConfig), (Mamba2, Mamba2Config), (S4D, S4DConfig)),
    *((RWKV6, RWKV6Config), (Transformer, TransformerConfig)),
]


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


@pytest.mark.parametrize(("model", "config"), MODELS)
def test_weights_may_be_bf16(
    model: Callable[[StackConfig], Stack], config: type[StackConfig]
) -> None:
    torch.manual_seed(0)
    built = model(config.preset("tiny")).requires_grad_(False)
    x = torch.randn(2, 40, built.d_model, generator=torch.Generator().manual_seed(1))
    exact, _ = built(x)
    built.bfloat16()
    y, state = built(x.bfloat16())
    arena = built.initial_state(3)
    steps = [built.step_(x[:, t].bfloat16(), arena, torch.tensor([2, 1])) for t in range(40)]
    assert {entry.dtype for entry in [*state.values(), *arena.values()]} == {torch.float32}
    for found in (y, torch.stack(steps, dim=1)):
        assert (found - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("model", ["kssm", "s4d"])
@pytest.mark.parametrize("convert", [nn.Module.bfloat16, nn.Module.half])
def test_half_precision_leaves_the_recurrence_alone(
    model: str, convert: Callable[[nn.Module], nn.Module]
) -> None:
    torch.manual_seed(0)
    built = build(model, "tiny").requires_grad_(False)
    block = cast(Block, built.blocks[1])
    before = {name: getattr(block, name).clone() for name in block.recurrent}
    x = torch.randn(2, 300, built.d_model, generator=torch.Generator().manual_seed(1))
    exact, _ = built(x)
    convert(built)
    assert all(torch.equal(getattr(block, name), before[name]) for name in before)
    y, _ = built(x.to(next(built.norm.parameters()).dtype))
    assert torch.linalg.norm(y - exact) < 0.02 * torch.linalg.norm(exact)
    assert built.double().blocks[1].state_dict()[min(before)].dtype == torch.float64


def test_a_gradient_keeps_the_dtype_of_its_parameter() -> None:
    built = build("kssm", "tiny")
    built(torch.ones(1, 3, built.d_model))[0].sum().backward()
    built.bfloat16()
    pairs = [(p.dtype, p.grad.dtype) for p in built.parameters() if p.grad is not None]
    assert set(pairs) == {(dtype, dtype) for dtype in (torch.float32, torch.bfloat16)}


@pytest.mark.parametrize(("model", "config"), MODELS)
def test_a_sick_row_keeps_its_old_state(
    model: Callable[[StackConfig], Stack], config: type[StackConfig]
) -> None:
    torch.manual_seed(0)
    built = model(config.preset("tiny")).requires_grad_(False)
    arena = built.initial_state(4)
    x = torch.randn(3, built.d_model, generator=torch.Generator().manual_seed(1))
    built.step_(x, arena, torch.tensor([1, 2, 3]))
    before = {name: entry.clone() for name, entry in arena.items()}
    x = x.flip(0)  # other tokens: a shift that only holds the last one must change too
    x[1] = torch.nan
    y = built.step_(x, arena, torch.tensor([1, 2, 3]))
    assert torch.isfinite(y[[0, 2]]).all()
    for name, entry in arena.items():
        assert torch.equal(entry[2], before[name][2])
        assert not torch.equal(entry[1], before[name][1])
