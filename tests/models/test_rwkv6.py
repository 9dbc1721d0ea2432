"""RWKV-6 against the equations of its paper, written out token by token in float64.

Peng et al., "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence", 2024; the
equations of Finch: data-dependent interpolation (ddlerp), decay, WKV and channel mix.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kssm.errors import InvalidInputError
from kssm.models.rwkv6 import RWKV6, LayerNorm, RWKV6Block, RWKV6Config
from tests.models.peers import ROWS, our_steps, relative_error, shaken

WIDTH, HEADS, SIZE, RANK = 12, 3, 4, 3
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
Weights = dict[str, Tensor]


def model(dtype: torch.dtype = torch.float32, **changes: Any) -> RWKV6:
    torch.manual_seed(0)
    sizes = {"head_size": SIZE, "d_ffn": 20, "mix_rank": RANK, "decay_rank": 5} | changes
    net = RWKV6(RWKV6Config(d_model=WIDTH, n_layers=2, **sizes))
    shaken(net)
    return net.to(dtype)


def tokens(length: int, dtype: torch.dtype = torch.float32) -> Tensor:
    make = torch.Generator().manual_seed(length)
    return torch.randn(ROWS, length, WIDTH, generator=make, dtype=dtype)


def steps(length: int, dtype: torch.dtype = torch.float32) -> Tensor:
    make = torch.Generator().manual_seed(length)
    return 0.2 + 2 * torch.rand(ROWS, length, generator=make, dtype=dtype)


def norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def lora(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    return torch.tanh(x @ down) @ up


def time_mix(w: Weights, a: Tensor, b: Tensor, s: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    """One token a [B, D] after b, with the state s [B, H, K, V]; output and new state."""
    base = a + (b - a) * w["time.mix_input"]
    downs = w["time.mix_down.weight"].view(5, RANK, WIDTH)

    def ddlerp(i: int) -> Tensor:
        share = w["time.mix"][i] + lora(base, downs[i].T, w["time.mix_up"][i])
        return a + (b - a) * share

    d = w["time.decay"] + lora(
        ddlerp(0), w["time.decay_down.weight"].T, w["time.decay_up.weight"].T
    )
    decay = torch.exp(-torch.exp(d)) ** dt[:, None]
    names = ("key", "value", "receptance", "gate")
    k, v, r, g = (ddlerp(i + 1) @ w[f"time.{name}.weight"].T for i, name in enumerate(names))
    k, v, r, decay = (t.view(-1, HEADS, SIZE) for t in (k, v, r, decay))
    outer = k[..., :, None] * v[..., None, :]
    wkv = s + w["time.bonus"][..., None] * outer
    y = (r[..., :, None] * wkv).sum(-2)
    heads = norm(y, torch.ones(SIZE), torch.zeros(SIZE), eps=64e-5).flatten(1)
    heads = heads * w["time.head_weight"] + w["time.head_bias"]
    out = (heads * g * torch.sigmoid(g)) @ w["time.output.weight"].T
    return out, decay[..., None] * s + outer


def channel_mix(w: Weights, a: Tensor, b: Tensor) -> Tensor:
    k = (a + (b - a) * w["channel.mix_key"]) @ w["channel.key.weight"].T
    r = (a + (b - a) * w["channel.mix_receptance"]) @ w["channel.receptance.weight"].T
    return torch.sigmoid(r) * (k.clamp_min(0) ** 2 @ w["channel.value.weight"].T)


def layer(w: Weights, x: Tensor, dt: Tensor) -> Tensor:
    """All tokens x [B, T, D] through one layer, one by one."""
    b_time = b_channel = torch.zeros_like(x[:, 0])
    s = x.new_zeros(ROWS, HEADS, SIZE, SIZE)
    outputs: list[Tensor] = []
    for t in range(x.shape[1]):
        a = norm(x[:, t], w["time_norm.weight"], w["time_norm.bias"])
        y, s = time_mix(w, a, b_time, s, dt[:, t])
        h, b_time = x[:, t] + y, a
        a = norm(h, w["channel_norm.weight"], w["channel_norm.bias"])
        outputs.append(h + channel_mix(w, a, b_channel))
        b_channel = a
    return torch.stack(outputs, dim=1)


def by_the_paper(net: RWKV6, x: Tensor, dt: Tensor) -> Tensor:
    weights = {name: weight.double() for name, weight in net.state_dict().items()}
    x, dt = x.double(), dt.double()
    if net.config.input_norm:
        x = norm(x, weights["blocks.0.input_norm.weight"], weights["blocks.0.input_norm.bias"])
    for i in range(net.config.n_layers):
        prefix = f"blocks.{i}."
        own = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
        x = layer(own, x, dt)
    return norm(x, weights["norm.weight"], weights["norm.bias"])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("length", [1, 5, 64, 150])
@pytest.mark.parametrize("input_norm", [False, True])
def test_forward_follows_the_paper(dtype: torch.dtype, length: int, input_norm: bool) -> None:
    net, x = model(dtype, input_norm=input_norm), tokens(length, dtype)
    expected = by_the_paper(net, x, torch.ones(ROWS, length))
    assert relative_error(net(x)[0].double(), expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("cut", [1, 40, 65])
def test_a_carried_state_follows_the_paper(dtype: torch.dtype, cut: int) -> None:
    net, x, dt = model(dtype), tokens(100, dtype), steps(100, dtype)
    expected = by_the_paper(net, x, dt)
    y, state = net(x[:, :cut], dt=dt[:, :cut])
    rest, _ = net(x[:, cut:], state, dt=dt[:, cut:])
    assert relative_error(torch.cat([y, rest], 1).double(), expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_steps_follow_the_paper(dtype: torch.dtype) -> None:
    net, x = model(dtype), tokens(60, dtype)
    expected = by_the_paper(net, x, torch.ones(ROWS, 60))
    y, _ = our_steps(net, x, net.initial_state(ROWS))
    assert relative_error(y.double(), expected) <= TOLERANCE[dtype]


def test_dt_is_the_power_of_the_decay() -> None:
    """A second of silence in one step or in two decays the state alike."""
    net = model(torch.float64)
    block = net.blocks[0]
    assert isinstance(block, RWKV6Block)
    mix = block.time
    raw, dt = tokens(1, torch.float64).unflatten(-1, mix.bonus.shape), torch.full((ROWS, 1), 3.0)
    once = mix._log_decay(raw, None)
    assert torch.allclose(mix._log_decay(raw, dt), 3 * once)
    assert (once < 0).all()


def test_endless_time_leaves_only_its_own_token_in_the_state() -> None:
    net, x = model(), tokens(70).requires_grad_()
    dt = torch.ones(ROWS, 70)
    dt[:, 30] = 1e30
    _, state = net(x[:, :31], dt=dt[:, :31])
    assert (torch.linalg.matrix_rank(state["layers.0.state"]) == 1).all()
    y, end = net(x, dt=dt)
    (y.sum() + sum(entry.sum() for entry in end.values())).backward()
    assert torch.isfinite(y).all()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_a_later_nan_changes_no_bit() -> None:
    net, x = model(), tokens(150)
    y, _ = net(x)
    x[:, 120:] = torch.nan
    assert torch.equal(net(x)[0][:, :120], y[:, :120])


def test_a_step_with_nan_keeps_the_row() -> None:
    net, x = model(), tokens(9)
    _, arena = net(x)
    before = {name: entry.clone() for name, entry in arena.items()}
    token = x[:, 0].clone()
    token[1] = torch.nan
    y = net.step_(token, arena, torch.arange(ROWS))
    assert torch.isfinite(y[0]).all()
    assert all(torch.equal(arena[name][1], before[name][1]) for name in arena)
    assert all(not torch.equal(arena[name][0], before[name][0]) for name in arena)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_layer_norm_is_finite_for_finite_tokens(dtype: torch.dtype) -> None:
    ours, plain = LayerNorm(8).to(dtype), torch.nn.LayerNorm(8).to(dtype)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(ours(x), plain(x))
    assert torch.isfinite(ours(x * 1e38)).all()


@pytest.mark.parametrize(
    "changes", [{"head_size": 7}, {"d_ffn": 0}, {"mix_rank": 0}, {"d_model": 100}]
)
def test_sizes_are_checked(changes: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError) as error:
        RWKV6Config(**changes)
    assert error.value.code == "invalid_config"


def test_autocast_keeps_the_recurrence_in_fp32() -> None:
    net, x = model(), tokens(100)
    expected, end = net(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = net(x)
    assert {entry.dtype for entry in state.values()} == {torch.float32}
    assert relative_error(y.float(), expected) < 0.05
    assert relative_error(state["layers.0.state"], end["layers.0.state"]) < 0.05
