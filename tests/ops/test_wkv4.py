"""WKV-4 by chunks and by steps against its reference, and that against the sums written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kssm.ops.wkv4 import wkv4, wkv4_reference, wkv4_step_

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
Problem = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def problem(length: int, dtype: torch.dtype = torch.float32, spread: float = 3.0) -> Problem:
    make = torch.Generator().manual_seed(length)
    k, v = torch.randn(2, 3, length, 8, generator=make, dtype=torch.float64)
    rate, bonus = torch.randn(2, 8, generator=make, dtype=torch.float64)
    before = torch.randn(3, 5, 8, generator=make, dtype=torch.float64)
    zeros = torch.zeros(3, 8, 3, dtype=torch.float64)
    _, state = wkv4_reference(before, before.flip(1), (2 * rate).exp(), bonus, zeros)
    found = (spread * k, v, (2 * rate).exp(), bonus, state)
    return tuple(t.to(dtype) for t in found)  # pyright: ignore[reportReturnType]


def times(length: int, dtype: torch.dtype) -> Tensor:
    make = torch.Generator().manual_seed(length + 1)
    return 0.1 + 3 * torch.rand(3, length, generator=make, dtype=dtype)


def error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


def as_sums(k: Tensor, v: Tensor, rate: Tensor, bonus: Tensor, dt: Tensor) -> Tensor:
    """Outputs of fresh rows: every weight written out."""
    outputs: list[Tensor] = []
    for t in range(k.shape[1]):
        weights, values = [torch.exp(k[:, t] + bonus)], [v[:, t]]
        for s in range(t):
            passed = dt[:, s + 1 : t].sum(1, keepdim=True)
            weights.append(torch.exp(k[:, s] - passed * rate))
            values.append(v[:, s])
        stacked = torch.stack(weights)
        outputs.append((stacked * torch.stack(values)).sum(0) / stacked.sum(0))
    return torch.stack(outputs, dim=1)


@pytest.mark.parametrize("timed", [False, True])
def test_the_reference_is_the_weighted_average(timed: bool) -> None:
    k, v, rate, bonus, _ = problem(12, torch.float64)
    dt = times(12, torch.float64) if timed else None
    fresh = torch.zeros(3, 8, 3, dtype=torch.float64)
    y, _ = wkv4_reference(k, v, rate, bonus, fresh, dt)
    steps = torch.ones(3, 12, dtype=torch.float64) if dt is None else dt
    assert error(y, as_sums(k, v, rate, bonus, steps)) <= 1e-12


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("length", [1, 15, 16, 17, 100])
@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("fresh", [False, True])
def test_chunks_equal_the_reference(
    dtype: torch.dtype, length: int, timed: bool, fresh: bool
) -> None:
    k, v, rate, bonus, state = problem(length, dtype)
    state = torch.zeros_like(state) if fresh else state
    dt = times(length, dtype) if timed else None
    lengths = torch.tensor([length, 0, length // 2])
    y, end = wkv4(k, v, rate, bonus, state, dt, lengths)
    expected = wkv4_reference(
        k.double(),
        v.double(),
        rate.double(),
        bonus.double(),
        state.double(),
        None if dt is None else dt.double(),
        lengths,
    )
    for row, valid in enumerate(lengths.tolist()):
        if valid:
            right = expected[0][row, :valid].to(dtype)
            assert error(y[row, :valid], right) <= TOLERANCE[dtype]
    assert torch.isfinite(y).all()
    assert error(end, expected[1].to(dtype)) <= TOLERANCE[dtype]
    assert torch.equal(end[1], state[1])


def test_steps_equal_the_reference() -> None:
    k, v, rate, bonus, state = problem(40)
    dt = times(40, torch.float32)
    expected, end = wkv4_reference(k, v, rate, bonus, state, dt)
    states, slots = torch.zeros(6, 8, 3), torch.tensor([4, 1, 3])
    states[slots] = state
    kept = states[[0, 2, 5]].clone()
    steps = [wkv4_step_(k[:, t], v[:, t], rate, bonus, states, slots, dt[:, t]) for t in range(40)]
    assert error(torch.stack(steps, dim=1), expected) <= 1e-6
    assert error(states[slots], end) <= 1e-6
    assert torch.equal(states[[0, 2, 5]], kept)


@pytest.mark.parametrize("size", [1e-30, 1e4, 1e20])
def test_keys_of_any_size(size: float) -> None:
    k, v, rate, bonus, state = problem(40)
    for sign in (1.0, -1.0):
        y, end = wkv4(sign * size * k, v, rate, bonus, state)
        assert torch.isfinite(y).all()
        assert torch.isfinite(end).all()
        assert float(y.abs().max()) <= max(float(v.abs().max()), 10.0)


def test_a_later_token_changes_no_earlier_bit() -> None:
    k, v, rate, bonus, state = problem(20)
    y, _ = wkv4(k, v, rate, bonus, state)
    k[:, 9:], v[:, 9:] = torch.nan, torch.inf
    other, _ = wkv4(k, v, rate, bonus, state)
    assert torch.equal(other[:, :9], y[:, :9])


def test_a_sick_row_keeps_its_state() -> None:
    k, v, rate, bonus, state = problem(1)
    v[1] = torch.nan
    states = state.clone()
    wkv4_step_(k[:, 0], v[:, 0], rate, bonus, states, torch.arange(3))
    assert torch.equal(states[1], state[1])
    assert not torch.equal(states[0], state[0])


def test_gradients() -> None:
    inputs = [t.requires_grad_() for t in problem(20, torch.float64)]
    dt = times(20, torch.float64)
    lengths = torch.tensor([20, 3, 17])

    def run(k: Tensor, v: Tensor, rate: Tensor, bonus: Tensor, state: Tensor) -> Tensor:
        y, end = wkv4(k, v, rate, bonus, state, dt, lengths)
        valid = torch.arange(20) < lengths.unsqueeze(1)
        return torch.cat([y[valid].flatten(), end.flatten()])

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
