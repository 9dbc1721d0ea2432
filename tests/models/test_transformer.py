"""The Transformer against ``transformers`` on the same weights, and its window against a mask."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kssm.errors import InvalidInputError
from kssm.models.base import SequenceModel
from kssm.models.transformer import Transformer, TransformerBlock, TransformerConfig, rotate
from kssm.models.window import advanced, attend, attend_after, ring_after, ring_in_order, seen
from tests.models.peers import LAYERS, ROWS, our_steps, relative_error, shaken, transformers

WIDTH, TOLERANCE = 16, 1e-5
SIZES = {"n_heads": 4, "n_kv_heads": 2, "head_size": 6, "d_mlp": 24}
WINDOWS = {"Llama": 512, "Mistral": 7}
Pair = tuple[SequenceModel, nn.Module]


def translated(theirs: nn.Module) -> dict[str, Tensor]:
    """Their weights under our names: q, k, v and gate, up are one matrix each here."""
    weights = theirs.state_dict()
    ours = {"norm.weight": weights["norm.weight"]}
    for i in range(LAYERS):
        old, new = f"layers.{i}", f"blocks.{i}"
        qkv = [weights[f"{old}.self_attn.{name}_proj.weight"] for name in "qkv"]
        gate_up = [weights[f"{old}.mlp.{name}_proj.weight"] for name in ("gate", "up")]
        ours |= {
            f"{new}.attention_norm.weight": weights[f"{old}.input_layernorm.weight"],
            f"{new}.qkv.weight": torch.cat(qkv),
            f"{new}.output.weight": weights[f"{old}.self_attn.o_proj.weight"],
            f"{new}.mlp_norm.weight": weights[f"{old}.post_attention_layernorm.weight"],
            f"{new}.mlp.up.weight": torch.cat(gate_up),
            f"{new}.mlp.down.weight": weights[f"{old}.mlp.down_proj.weight"],
        }
    return ours


@pytest.fixture(scope="module", params=WINDOWS)
def pair(request: pytest.FixtureRequest) -> Pair:
    torch.manual_seed(0)
    peer, window = transformers(), WINDOWS[request.param]
    settings: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": 24,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "vocab_size": 5,
        "rms_norm_eps": 1e-6,
    }
    if request.param == "Mistral":
        settings["sliding_window"] = window
    config = getattr(peer, f"{request.param}Config")(**settings)
    theirs = shaken(getattr(peer, f"{request.param}Model")(config))
    for name, weight in theirs.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            weight.mul_(5.0)  # fresh weights attend to all alike, and would not show positions
    ours = Transformer(TransformerConfig(d_model=WIDTH, n_layers=LAYERS, window=window, **SIZES))
    ours.load_state_dict(translated(theirs))
    return ours.eval().requires_grad_(False), theirs


def tokens(length: int, dtype: torch.dtype = torch.float32) -> Tensor:
    make = torch.Generator().manual_seed(length)
    return torch.randn(ROWS, length, WIDTH, generator=make, dtype=dtype)


def model(window: int, dtype: torch.dtype = torch.float32) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(d_model=WIDTH, n_layers=2, window=window, **SIZES)
    return Transformer(config).to(dtype).eval().requires_grad_(False)


@pytest.mark.parametrize("length", [1, 7, 8, 40, 300])
def test_forward_agrees_with_transformers(pair: Pair, length: int) -> None:
    ours, theirs = pair
    x = tokens(length)
    expected = theirs(inputs_embeds=x).last_hidden_state
    assert relative_error(ours(x)[0], expected) <= TOLERANCE


@pytest.mark.parametrize("cut", [1, 6, 7, 8, 30])
def test_a_carried_cache_agrees_with_transformers(pair: Pair, cut: int) -> None:
    ours, theirs = pair
    x = tokens(70)
    head = theirs(inputs_embeds=x[:, :cut], use_cache=True)
    tail = theirs(inputs_embeds=x[:, cut:], past_key_values=head.past_key_values)
    _, state = ours(x[:, :cut])
    assert relative_error(ours(x[:, cut:], state)[0], tail.last_hidden_state) <= TOLERANCE
    assert (
        relative_error(our_steps(ours, x[:, cut:], state)[0], tail.last_hidden_state) <= TOLERANCE
    )


def test_steps_agree_with_transformers(pair: Pair) -> None:
    ours, theirs = pair
    x = tokens(40)
    outputs: list[Tensor] = []
    cache = None
    for t in range(40):
        out = theirs(inputs_embeds=x[:, t : t + 1], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        outputs.append(out.last_hidden_state)
    y, _ = our_steps(ours, x, ours.initial_state(ROWS))
    assert relative_error(y, torch.cat(outputs, dim=1)) <= TOLERANCE


def masked_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Windowed attention of one head group written out, [B, T, H, D]."""
    k, v = (t.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for t in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[-1])
    age = torch.arange(q.shape[1])[:, None] - torch.arange(q.shape[1])
    scores = scores.masked_fill((age < 0) | (age >= window), -torch.inf)
    return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v)


@pytest.mark.parametrize("window", [1, 2, 5, 64, 70])
@pytest.mark.parametrize("length", [1, 5, 64, 65, 200])
def test_attention_equals_a_masked_softmax(window: int, length: int) -> None:
    make = torch.Generator().manual_seed(0)
    q = torch.randn(2, length, 4, 6, generator=make, dtype=torch.float64)
    k, v = torch.randn(2, 2, length, 2, 6, generator=make, dtype=torch.float64)
    expected = masked_attention(q, k, v, window)
    assert relative_error(attend(q, k, v, window), expected) <= 1e-12
    cut = length // 3
    count = torch.tensor([cut, cut])
    rings = (
        [
            ring_after(torch.zeros(2, window, 2, 6).double(), t[:, :cut], count * 0, None)
            for t in (k, v)
        ]
        if cut
        else [torch.zeros(2, window, 2, 6).double()] * 2
    )
    past = [ring_in_order(ring, count) for ring in rings]
    rest = attend_after(
        q[:, cut:], k[:, cut:], v[:, cut:], past[0], past[1], count.clamp_max(window)
    )
    assert relative_error(rest, expected[:, cut:]) <= 1e-12


@pytest.mark.parametrize("window", [1, 3, 8])
def test_the_ring_holds_the_last_tokens_in_order(window: int) -> None:
    values = torch.arange(40.0).view(1, 40, 1)
    ring, stored, start = torch.zeros(1, window, 1), torch.zeros(1, 1), 0
    for length in (1, 2, 0, 5, 9, 1, 16):
        chunk = values[:, start : start + 16]
        valid = torch.tensor([length])
        ring = ring_after(ring, chunk, seen(stored, window), valid)
        stored = advanced(stored, valid.unsqueeze(1), window)
        start += length
        held = ring_in_order(ring, seen(stored, window))[0, :, 0]
        filled = min(start, window)
        assert held[window - filled :].tolist() == values[0, start - filled : start, 0].tolist()
        assert float(stored) < 2 * window
        assert int(stored) % window == start % window


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("window", [1, 5, 100])
def test_long_rows_split_anywhere(dtype: torch.dtype, limit: float, window: int) -> None:
    net, x = model(window, dtype), tokens(230, dtype)
    y, end = net(x)
    state, parts = None, []
    for part in x.split([1, 70, 3, 100, 56], dim=1):
        out, state = net(part, state)
        parts.append(out)
    assert relative_error(torch.cat(parts, dim=1), y) <= limit
    assert state is not None
    for name, entry in end.items():
        assert relative_error(state[name], entry) <= limit, name


def test_dt_advances_the_position() -> None:
    """Scores depend on the time between tokens: q rotated by t_q, k by t_k."""
    net, x = model(50, torch.float64), tokens(20, torch.float64)
    dt = 0.1 + 3 * torch.rand(ROWS, 20, generator=torch.Generator().manual_seed(1)).double()
    block = net.blocks[0]
    assert isinstance(block, TransformerBlock)
    q, k, v = block._project(x)
    frequency = 10_000.0 ** (-torch.arange(0, 6, 2).double() / 6)
    turns = dt.cumsum(1).unsqueeze(-1) * frequency / (2 * math.pi)
    y = masked_attention(rotate(q, turns), rotate(k, turns), v, 50)
    expected = block._finish(x, y)
    assert relative_error(block(x, None, None, dt)[0], expected) <= 1e-12
    assert relative_error(net(x, dt=dt)[0], net(x)[0]) > 1e-3


def test_age_costs_no_precision() -> None:
    """After some 10^12 units of time the outputs are still those of a fresh row."""
    net, x = model(6), tokens(30)
    dt = torch.ones(ROWS, 30)
    late = dt.clone()
    late[:, 0] = 2.0**40
    y, _ = net(x, dt=dt)
    assert relative_error(net(x, dt=late)[0], y) <= 1e-5


def test_a_later_nan_changes_no_bit() -> None:
    net, x = model(6), tokens(150)
    y, _ = net(x)
    x[:, 120:] = torch.nan
    other, _ = net(x)
    assert torch.equal(other[:, :120], y[:, :120])
    assert torch.isnan(other[:, 120:]).all()


def test_a_step_with_nan_keeps_the_row() -> None:
    net, x = model(6), tokens(9)
    _, arena = net(x)
    before = {name: entry.clone() for name, entry in arena.items()}
    token = x[:, 0].clone()
    token[1] = torch.nan
    y = net.step_(token, arena, torch.arange(ROWS))
    assert torch.isfinite(y[0]).all()
    assert not torch.isfinite(y[1]).all()
    assert all(torch.equal(arena[name][1], before[name][1]) for name in arena)
    assert not torch.equal(arena["layers.0.keys"][0], before["layers.0.keys"][0])


@pytest.mark.parametrize(
    "changes",
    [{"n_heads": 3}, {"head_size": 5}, {"window": 0}, {"rope_theta": 1.0}, {"d_mlp": 0}],
)
def test_sizes_are_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError) as error:
        TransformerConfig(**changes)
    assert error.value.code == "invalid_config"
