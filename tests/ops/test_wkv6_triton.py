"""The WKV-6 kernels: interpreted, or on a GPU where there is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.kernels import DEVICE, ON_GPU, check_scan, draw, worst

pytest.importorskip("triton")

from kssm.models.rwkv6 import RWKV6Config, TimeMix
from kssm.ops.wkv6 import kernel, wkv6_reference, wkv6_step_
from kssm.ops.wkv6.kernel_step import Gating, wkv6_gated_step_triton_, wkv6_step_triton_

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's NaNs

ROWS, HEADS, KEYS, VALUES = (2, 3, 64, 64) if ON_GPU else (2, 2, 5, 6)
LENGTHS = [1, 3, 63, 64, 65, 200] if ON_GPU else [1, 3, 4, 9]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks in a few tokens, where tokens are slow."""
    if not ON_GPU:
        monkeypatch.setattr(kernel, "_CHUNK", 4)


def problem(length: int, strength: float, keys: int = KEYS, values: int = VALUES) -> list[Tensor]:
    tokens = (ROWS, length, HEADS)
    return [
        draw(*tokens, keys, seed=0),
        draw(*tokens, keys, seed=1),
        draw(*tokens, values, seed=2),
        -(strength * draw(*tokens, keys, seed=3)).exp(),
        draw(HEADS, keys, seed=4),
        draw(ROWS, HEADS, keys, values, seed=5),
    ]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("strength", [0.1, 1.0, 3.0])
@pytest.mark.usefixtures("poisoned", "small_chunks")
def test_values_and_gradients(length, strength):
    check_scan(kernel.wkv6_triton, wkv6_reference, problem(length, strength), 1e-5)


@pytest.mark.parametrize(("keys", "values"), [(28, 28), (40, 17), (128, 64)])
@pytest.mark.skipif(not ON_GPU, reason="large")
def test_other_sizes(keys, values):
    check_scan(kernel.wkv6_triton, wkv6_reference, problem(70, 1.0, keys, values), 1e-5)


@pytest.mark.usefixtures("small_chunks")
def test_later_tokens_change_no_bit():
    inputs = [t.to(DEVICE) for t in problem(9, 1.0)]
    y, _ = kernel.wkv6_triton(*inputs)
    for tokens in inputs[:3]:
        tokens[:, 6:] = torch.nan
    assert torch.equal(kernel.wkv6_triton(*inputs)[0][:, :6], y[:, :6])


@pytest.mark.usefixtures("poisoned")
def test_the_step():
    r, k, v, log_decay, bonus, _ = problem(1, 1.0)
    states = draw(5, HEADS, KEYS, VALUES, seed=6)
    v[1, 0, 0, 2] = torch.nan
    slots = torch.tensor([3, 1])
    tokens = [t[:, 0] for t in (r, k, v, log_decay)]
    y, end = wkv6_reference(*(t.double() for t in (r, k, v, log_decay, bonus, states[slots])))
    arena = states.clone().to(DEVICE)
    step: Any = wkv6_step_triton_
    found = step(*(t.to(DEVICE) for t in (*tokens, bonus)), arena, slots.to(DEVICE))
    arena = arena.cpu()
    assert worst(found[0], y[0, 0]) <= 1e-5
    assert worst(arena[3], end[0]) <= 1e-5
    assert torch.equal(arena[[0, 2, 4]], states[[0, 2, 4]])
    assert torch.equal(arena[1, 0, :, 2], states[1, 0, :, 2])
    assert torch.isfinite(arena).all()
    assert found[1, 0, 2].isnan()


@pytest.mark.parametrize("with_dt", [False, True])
@pytest.mark.usefixtures("poisoned")
def test_the_gated_step_is_the_models(with_dt):
    config = RWKV6Config(d_model=12, n_layers=1, head_size=6, d_ffn=8, mix_rank=3, decay_rank=3)
    torch.manual_seed(0)
    mix = TimeMix(config, 0).double().requires_grad_(False)
    mix.head_weight.copy_(draw(12, seed=1))
    mix.head_bias.copy_(draw(12, seed=2))
    tokens = [draw(3, 2, 6, seed=i).double() for i in range(3, 7)]
    tokens[3][0, 0, 0] = 40.0  # a rate that is cut
    gate, states = draw(3, 12, seed=7).double(), draw(5, 2, 6, 6, seed=8).double()
    slots, dt = torch.tensor([3, 1, 4]), torch.tensor([0.5, 1.0, 3.0]) if with_dt else None
    r, k, v, raw = tokens
    own = states.clone()
    y = wkv6_step_(r, k, v, mix._log_decay(raw, dt), mix.bonus, own, slots)
    expected = mix._read(y, gate)

    arena = states.float().to(DEVICE)
    move = [t.float().to(DEVICE) for t in (r, k, v, raw, mix.bonus, mix.decay.view(2, 6))]
    norm = [t.float().to(DEVICE) for t in (mix.head_weight, mix.head_bias)]
    own_dt = None if dt is None else dt.to(DEVICE)
    step: Any = wkv6_gated_step_triton_
    gather: Any = Gating
    gating = gather(move[5], own_dt, *norm, config.head_eps, gate.float().to(DEVICE), 30.0, 1000.0)
    found = step(*move[:5], gating, arena, slots.to(DEVICE))
    assert worst(mix.output(found.cpu().double()), expected) <= 1e-5
    assert worst(arena.cpu()[[1, 3, 4]], own[[1, 3, 4]]) <= 1e-5
    assert torch.equal(arena.cpu()[[0, 2]], states.float()[[0, 2]])
