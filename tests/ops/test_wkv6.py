"""The parallel and the stepped WKV-6 against the recurrence, token by token."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from kssm.errors import InvalidInputError
from kssm.ops.wkv6 import wkv6, wkv6_reference, wkv6_step_

ROWS, HEADS, KEYS, VALUES = 2, 3, 4, 5


class Problem(NamedTuple):
    r: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor
    bonus: Tensor
    initial: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Problem:
        return Problem(*(change(tensor) for tensor in self))

    def cut(self, length: int) -> Problem:
        r, k, v, log_decay = (tensor[:, :length] for tensor in self[:4])
        return Problem(r, k, v, log_decay, self.bonus, self.initial)

    def token(self, t: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.r[:, t], self.k[:, t], self.v[:, t], self.log_decay[:, t], self.bonus


def problem(length: int, dtype: torch.dtype, strength: float = 1.0) -> Problem:
    """Random inputs; large ``strength`` = violent decays."""
    make = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make, dtype=dtype)

    tokens = (ROWS, length, HEADS)
    r, k, v = normal(*tokens, KEYS), normal(*tokens, KEYS), normal(*tokens, VALUES)
    log_decay = -(strength * normal(*tokens, KEYS)).exp()
    return Problem(r, k, v, log_decay, normal(HEADS, KEYS), normal(ROWS, HEADS, KEYS, VALUES))


def worst(actual: Tensor, expected: Tensor) -> float:
    scale = float(expected.abs().max())
    return float((actual.double() - expected.double()).abs().max()) / scale


@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 200])
@pytest.mark.parametrize("strength", [0.1, 1.0, 3.0])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
def test_equals_the_recurrence(length, strength, dtype, limit):
    inputs = problem(length, dtype, strength)
    y, state = wkv6(*inputs)
    expected, end = wkv6_reference(*inputs.map(Tensor.double))
    assert y.dtype == state.dtype == dtype
    assert worst(y, expected) <= limit
    assert worst(state, end) <= limit


def test_steps_equal_the_recurrence():
    inputs = problem(9, torch.float64)
    expected, end = wkv6_reference(*inputs)
    arena = torch.randn(6, HEADS, KEYS, VALUES, dtype=torch.float64)
    slots = torch.tensor([4, 2])
    arena[slots] = inputs.initial
    untouched = arena[[0, 1, 3, 5]].clone()
    for t in range(9):
        y = wkv6_step_(*inputs.token(t), arena, slots)
        assert worst(y, expected[:, t]) <= 1e-14
    assert worst(arena[slots], end) <= 1e-14
    assert torch.equal(arena[[0, 1, 3, 5]], untouched)


def test_a_step_that_overflows_keeps_the_old_state():
    inputs = problem(1, torch.float32)
    inputs.k[0] = 3e38
    inputs.v[0] = 10.0
    initial, arena = inputs.initial, inputs.initial.clone()
    y = wkv6_step_(*inputs.token(0), arena, torch.arange(ROWS))
    assert torch.equal(arena[0], initial[0])
    assert not torch.isfinite(y[0]).all()
    assert not torch.equal(arena[1], initial[1])


def test_violent_decays_have_finite_gradients():
    inputs = problem(70, torch.float32)
    inputs.log_decay[:, ::7] = -1000.0
    inputs = inputs.map(Tensor.requires_grad_)
    y, state = wkv6(*inputs)
    (y.sum() + state.sum()).backward()
    for tensor in inputs:
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()


@pytest.mark.parametrize("length", [5, 67])
def test_gradients_equal_those_of_the_recurrence(length):
    gradients: list[tuple[Tensor, ...]] = []
    for function in (wkv6, wkv6_reference):
        inputs = problem(length, torch.float64).map(Tensor.requires_grad_)
        y, state = function(*inputs)
        gradients.append(torch.autograd.grad(y.square().sum() + state.sin().sum(), inputs))
    for actual, expected in zip(*gradients, strict=True):
        assert worst(actual, expected) <= 1e-12


def test_lengths_leave_the_state_alone():
    inputs = problem(70, torch.float32)
    _, state = wkv6(*inputs, lengths=torch.tensor([0, 33]))
    assert torch.equal(state[0], inputs.initial[0])
    _, short = wkv6(*inputs.cut(33))
    assert worst(state[1], short[1]) <= 1e-6


@pytest.mark.parametrize("bad", [1e30, float("nan"), float("inf")])
def test_later_tokens_change_no_bit(bad):
    inputs = problem(150, torch.float32)
    y, _ = wkv6(*inputs)
    for tensor in inputs[:3]:
        tensor[:, 101:] = bad
    other, _ = wkv6(*inputs)
    assert torch.equal(other[:, :101], y[:, :101])


def test_half_precision_inputs_compute_in_fp32():
    inputs = problem(20, torch.float32).map(Tensor.bfloat16)
    y, state = wkv6(*inputs)
    expected, end = wkv6_reference(*inputs.map(Tensor.double))
    assert y.dtype == state.dtype == torch.float32
    assert worst(y, expected) <= 2e-6
    assert worst(state, end) <= 2e-6


@pytest.mark.parametrize("index", range(5))
def test_shapes_are_checked(index):
    inputs = list(problem(3, torch.float32))
    inputs[index] = inputs[index][..., :-1, :]
    with pytest.raises(InvalidInputError) as error:
        wkv6(*Problem(*inputs))
    assert error.value.code == "wrong_shape"


def naive_of_fla() -> Callable[..., tuple[Tensor, Tensor]]:
    """The plain recurrence of flash-linear-attention, without importing its Triton kernels."""
    spec = importlib.util.find_spec("fla")
    if spec is None or spec.origin is None:
        pytest.skip("needs fla-core, which the extra 'dev' brings")
    path = Path(spec.origin).parent / "ops" / "rwkv6" / "recurrent_naive.py"
    module_spec = importlib.util.spec_from_file_location("fla_rwkv6_naive", path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module.naive_recurrent_rwkv6


def test_equals_flash_linear_attention():
    naive = naive_of_fla()
    inputs = problem(100, torch.float32)
    heads_first = [tensor.transpose(1, 2) for tensor in inputs[:4]]
    expected, end = naive(
        *heads_first,
        inputs.bonus,
        scale=1.0,
        initial_state=inputs.initial,
        output_final_state=True,
    )
    y, state = wkv6(*inputs)
    assert worst(y, expected.transpose(1, 2)) <= 1e-5
    assert worst(state, end) <= 1e-5
