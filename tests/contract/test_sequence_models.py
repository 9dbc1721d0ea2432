"""One suite for every sequence model: forward, step and any split of the two must agree."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kssm.errors import InvalidInputError
from kssm.models import SequenceModel
from tests.contract.builders import (
    BUILDERS,
    DEVICES,
    arena_of,
    assert_close,
    assert_states_close,
    run_steps,
)

ROWS, LENGTH = 3, 23


@pytest.fixture(params=BUILDERS)
def build(request: pytest.FixtureRequest) -> Callable[[], SequenceModel]:
    return request.param


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[torch.float32, torch.float64], ids=["fp32", "fp64"])
def model(
    build: Callable[[], SequenceModel], device: str, request: pytest.FixtureRequest
) -> SequenceModel:
    torch.manual_seed(0)
    return build().to(request.param).eval().requires_grad_(False).to(device)


@pytest.fixture
def x(model: SequenceModel) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    weight = next(model.parameters())
    x = torch.randn(ROWS, LENGTH, model.d_model, generator=generator, dtype=weight.dtype)
    return x.to(weight.device)


@pytest.fixture
def dt(x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    steps = 0.25 + 2.0 * torch.rand(ROWS, LENGTH, generator=generator, dtype=x.dtype)
    return steps.to(x.device)


def test_state_matches_spec(model: SequenceModel, x: Tensor) -> None:
    _, state = model(x)
    for name, (shape, dtype) in model.state_spec().items():
        assert state[name].shape == (ROWS, *shape)
        assert state[name].dtype == dtype


@pytest.mark.parametrize("with_dt", [False, True])
def test_forward_equals_steps(model: SequenceModel, x: Tensor, dt: Tensor, with_dt: bool) -> None:
    steps = dt if with_dt else None
    y, state = model(x, dt=steps)
    slots = torch.tensor([5, 2, 7], device=x.device)
    arena = arena_of(model, model.initial_state(ROWS), slots)
    assert_close(run_steps(model, x, arena, slots, steps), y)
    assert_states_close({name: entry[slots] for name, entry in arena.items()}, state)


@pytest.mark.parametrize("cut", [1, 2, 3, 11, LENGTH - 1])
def test_any_split_gives_the_same(model: SequenceModel, x: Tensor, dt: Tensor, cut: int) -> None:
    y, state = model(x, dt=dt)
    head, middle = model(x[:, :cut], dt=dt[:, :cut])
    tail, end = model(x[:, cut:], state=middle, dt=dt[:, cut:])
    assert_close(torch.cat([head, tail], dim=1), y)
    assert_states_close(end, state)
    slots = torch.tensor([1, 3, 2], device=x.device)
    arena = arena_of(model, middle, slots)
    assert_close(run_steps(model, x[:, cut:], arena, slots, dt[:, cut:]), y[:, cut:])


def test_forward_leaves_the_given_state_alone(model: SequenceModel, x: Tensor) -> None:
    _, state = model(x)
    copy = {name: entry.clone() for name, entry in state.items()}
    model(x, state=state)
    assert all(torch.equal(state[name], copy[name]) for name in copy)


def test_causality(model: SequenceModel, x: Tensor) -> None:
    y, _ = model(x)
    changed = x.clone()
    changed[:, 15:, ::2] += 1e3  # not all channels alike, which a layer norm would take out
    other, _ = model(changed)
    assert torch.equal(other[:, :15], y[:, :15])
    assert not torch.allclose(other[:, 15:], y[:, 15:])


def test_batched_equals_alone(model: SequenceModel, x: Tensor) -> None:
    y, state = model(x)
    for row in range(ROWS):
        alone, own = model(x[row : row + 1])
        assert_close(alone[0], y[row])
        assert_states_close(own, {name: entry[row : row + 1] for name, entry in state.items()})


def test_lengths(model: SequenceModel, x: Tensor) -> None:
    lengths = torch.tensor([LENGTH, 9, 0], device=x.device)
    garbage = x.clone()
    garbage[1, 9:] = 1e4
    y, state = model(garbage, lengths=lengths)
    short, own = model(x[1:2, :9])
    assert_close(y[1, :9], short[0])
    assert_states_close({n: e[1:2] for n, e in state.items()}, own)
    assert (y[1, 9:] == 0).all()
    assert (y[2] == 0).all()
    fresh = model.initial_state(1)
    assert all(torch.equal(state[name][2:], fresh[name]) for name in fresh)


def test_tokens_without_time_are_padding(model: SequenceModel, x: Tensor, dt: Tensor) -> None:
    holes = dt.clone()
    holes[0, [0, 4, 5, 20]] = 0
    holes[1] = 0
    y, state = model(x, dt=holes)
    kept = holes[0] > 0
    expected, own = model(x[:1, kept], dt=dt[:1, kept])
    assert_close(y[0, kept], expected[0])
    assert (y[0, ~kept] == 0).all()
    assert_states_close({n: e[:1] for n, e in state.items()}, own)
    fresh = model.initial_state(1)
    assert all(torch.equal(state[name][1:2], fresh[name]) for name in fresh)


def test_steps_touch_only_their_slots(model: SequenceModel, x: Tensor) -> None:
    _, state = model(x)
    arena = arena_of(model, state, torch.tensor([6, 1, 4], device=x.device))
    before = {name: entry.clone() for name, entry in arena.items()}
    slots = torch.tensor([4, -1, 6], device=x.device)
    y = model.step_(x[:, 0], arena, slots, torch.tensor([1.0, 1.0, 0.0], device=x.device))
    assert (y[1] == 0).all()
    assert (y[2] == 0).all()
    for name, entry in arena.items():
        for slot in (1, 2, 3, 5, 6, 7):
            assert torch.equal(entry[slot], before[name][slot]), (name, slot)
    assert any(not torch.equal(arena[name][4], before[name][4]) for name in arena)


def test_permuted_slots_give_permuted_rows(model: SequenceModel, x: Tensor) -> None:
    _, state = model(x)
    slots = torch.tensor([6, 1, 4], device=x.device)
    arena = arena_of(model, state, slots)
    other = {name: entry.clone() for name, entry in arena.items()}
    order = torch.tensor([2, 0, 1], device=x.device)
    y = model.step_(x[:, 0], arena, slots)
    permuted = model.step_(x[order, 0], other, slots[order])
    assert_close(permuted, y[order])
    assert_states_close(
        {n: e[slots] for n, e in other.items()}, {n: e[slots] for n, e in arena.items()}
    )


def test_bad_neighbour_changes_no_bit(model: SequenceModel, x: Tensor) -> None:
    poisoned = x.clone()
    poisoned[1] = torch.nan
    y, state = model(x)
    other, bad = model(poisoned)
    for row in (0, 2):
        assert torch.equal(other[row], y[row])
        assert all(torch.equal(bad[name][row], state[name][row]) for name in state)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_extreme_inputs_stay_finite(model: SequenceModel, x: Tensor, scale: float) -> None:
    y, state = model(x * scale)
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(entry).all() for entry in state.values())


def signal(pattern: str, tokens: int) -> Tensor:
    """[tokens] that a running model must bear: a constant, a jump, alternation, spikes."""
    time = torch.arange(tokens)
    values = {
        "constant": torch.full((tokens,), 3.0),
        "jump": torch.where(time < tokens // 2, 0.0, 1e6),
        "alternating": 1e3 * (1.0 - 2.0 * (time % 2)),
        "spikes": torch.where(time % 97 == 0, 1e30, 0.0),
    }
    return values[pattern]


@pytest.mark.parametrize("pattern", ["constant", "jump", "alternating", "spikes"])
def test_lasting_patterns_stay_finite(model: SequenceModel, pattern: str) -> None:
    dtype = next(model.parameters()).dtype
    x = signal(pattern, 2000).to(next(model.parameters()).device, dtype)
    y, state = model(x[None, :, None].expand(1, -1, model.d_model))
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(entry).all() for entry in state.values())


@pytest.mark.slow
@pytest.mark.skipif("LONG_TESTS" not in os.environ, reason="takes minutes: set LONG_TESTS=1")
@pytest.mark.timeout(900)
def test_a_million_samples_stay_finite(build: Callable[[], SequenceModel], device: str) -> None:
    torch.manual_seed(0)
    model = build().eval().requires_grad_(False).to(device)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 10_000, model.d_model, generator=generator).to(device)
    state = None
    for _ in range(100):
        y, state = model(x, state)
        assert torch.isfinite(y).all()
    assert state is not None
    assert all(torch.isfinite(entry).all() for entry in state.values())


def test_shapes_are_checked(model: SequenceModel, x: Tensor) -> None:
    with pytest.raises(InvalidInputError) as error:
        model(x[..., :-1])
    assert error.value.code == "wrong_shape"
    with pytest.raises(InvalidInputError):
        model(x, lengths=torch.ones(ROWS + 1, dtype=torch.long))
    with pytest.raises(InvalidInputError):
        model(x, dt=torch.ones(ROWS, LENGTH + 1))


def test_gradients_reach_every_parameter_and_the_state(
    build: Callable[[], SequenceModel], device: str
) -> None:
    torch.manual_seed(0)
    model = build().to(device)
    x = torch.randn(2, 9, model.d_model, device=device)
    state = {
        name: torch.randn_like(e).requires_grad_() for name, e in model.initial_state(2).items()
    }
    y, end = model(x, state=state)
    (y.square().sum() + sum(entry.sum() for entry in end.values())).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    for name, entry in state.items():
        assert entry.grad is not None, name
        assert entry.grad.abs().max() > 0, name


def test_gradient_checkpointing_changes_no_gradient(build: Callable[[], SequenceModel]) -> None:
    gradients: list[list[Tensor]] = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = build()
        assert model.gradient_checkpointing is False
        model.gradient_checkpointing = enabled
        x = torch.randn(2, 9, model.d_model, generator=torch.Generator().manual_seed(1))
        model(x)[0].square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))
