"""The matrix-state KSSM's own parts: initialisation, configuration, state, recall."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from kssm.errors import InvalidInputError
from kssm.models import KSSMMatrix, KSSMMatrixConfig
from kssm.models.kssm_matrix import KSSMMatrixBlock, spread_memory

CONFIG = KSSMMatrixConfig(d_model=16, n_layers=1, d_inner=256, head_dim=4, pairs=64, d_mlp=0)


def block() -> KSSMMatrixBlock:
    torch.manual_seed(0)
    return KSSMMatrixBlock(CONFIG).requires_grad_(False)


def test_memory_and_frequencies_are_spread() -> None:
    layer = block()
    spread_memory(layer, long_memory=1000.0, freq_min=1 / 500, freq_max=1 / 4)
    half_decay = 0.5 * F.softplus(layer.dt_bias) * F.softplus(layer.alpha_bias)
    memory = 1 / (2 * torch.asinh(half_decay))
    assert memory.max() == pytest.approx(1000, rel=0.01)
    assert memory.min() < 3
    cycles = torch.atan(layer.rate / 2) / math.pi
    turning = cycles[cycles > 1e-3]
    assert len(turning) == 56
    assert turning.min() == pytest.approx(1 / 500, rel=1e-3)
    assert turning.max() == pytest.approx(1 / 4, rel=1e-3)


@pytest.mark.parametrize(
    "arguments", [{"freq_min": 0.0}, {"freq_min": 0.3, "freq_max": 0.2}, {"long_memory": 1.0}]
)
def test_impossible_ranges_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError):
        spread_memory(block(), **arguments)


@pytest.mark.parametrize(
    "sizes",
    [{"d_inner": 65}, {"pairs": 0}, {"groups": 4}, {"conv_width": 1}, {"d_mlp": -1}],
)
def test_impossible_sizes(sizes: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError) as error:
        KSSMMatrixConfig(**sizes)
    assert error.value.code == "invalid_config"


def test_state_is_a_matrix_of_pairs_a_head_and_the_window() -> None:
    model = KSSMMatrix(KSSMMatrixConfig())
    floats = sum(math.prod(shape) for shape, _ in model.state_spec().values())
    assert floats == 8 * (384 * 32 * 2 + 3 * (384 + 4 * 32))


def test_time_constants_stay_in_fp32() -> None:
    layer = block().bfloat16()
    assert layer.in_proj.weight.dtype == torch.bfloat16
    kept = (layer.alpha_bias, layer.dt_bias, layer.rate)
    assert all(parameter.dtype == torch.float32 for parameter in kept)


def test_it_learns_to_recall() -> None:
    """Three pairs of key and value, then a key: the answer is the value that followed it."""
    torch.manual_seed(0)
    symbols, pairs = 6, 3
    sizes = KSSMMatrixConfig(d_model=32, n_layers=2, d_inner=32, head_dim=16, pairs=16, d_mlp=0)
    embed, model = torch.nn.Embedding(2 * symbols, 32), KSSMMatrix(sizes)
    read = torch.nn.Linear(32, symbols)
    weights = [*embed.parameters(), *model.parameters(), *read.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=5e-3)
    hits = 0.0
    for step in range(140):
        keys = torch.rand(32, symbols).argsort(1)[:, :pairs]
        values = torch.randint(symbols, (32, pairs))
        asked = torch.randint(pairs, (32, 1))
        prompt = torch.stack([keys, symbols + values], dim=2).flatten(1)
        tokens = torch.cat([prompt, keys.gather(1, asked)], dim=1)
        logits = read(model(embed(tokens))[0][:, -1])
        answer = values.gather(1, asked).squeeze(1)
        optimizer.zero_grad()
        F.cross_entropy(logits, answer).backward()
        optimizer.step()
        if step >= 130:
            hits += float((logits.argmax(1) == answer).float().mean()) / 10
    assert hits > 0.8
