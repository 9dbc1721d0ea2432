"""The wrapper that keeps the states: the same numbers as the bare model, rows kept apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kssm.errors import InvalidInputError, KSSMError, StateError
from kssm.models.base import SequenceModel, State
from kssm.models.registry import MODELS, build
from kssm.models.stateful import StatefulModel

ROWS = 3


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> SequenceModel:
    torch.manual_seed(0)
    return build(request.param, "tiny").eval()


@pytest.fixture
def x(model: SequenceModel) -> Tensor:
    make = torch.Generator().manual_seed(1)
    return torch.randn(ROWS, 12, model.d_model, generator=make)


def close(actual: Tensor, expected: Tensor) -> bool:
    return float((actual - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_steps_and_blocks_equal_one_forward(model: SequenceModel, x: Tensor) -> None:
    expected, end = model(x)
    stateful = StatefulModel(model, ROWS)
    y = [stateful.forward(x[:, :5]), stateful.step(x[:, 5])[:, None], stateful.forward(x[:, 6:])]
    joined = torch.cat(y, dim=1)
    assert not joined.requires_grad
    assert close(joined, expected.detach())
    state = stateful.get_states()
    assert all(close(state[name], entry.detach()) for name, entry in end.items())


def test_rows_are_apart_and_in_the_order_given(model: SequenceModel, x: Tensor) -> None:
    stateful = StatefulModel(model, 5)
    before = stateful.get_states([0, 2, 4])
    y = stateful.forward(x[:2], rows=[3, 1])
    alone, _ = model(x[1:2])
    assert close(y[1:], alone.detach())
    assert same(stateful.get_states([0, 2, 4]), before)
    swapped = stateful.get_states([1, 3])
    ordered = stateful.get_states([3, 1])
    assert all(torch.equal(swapped[name], ordered[name].flip(0)) for name in swapped)


def test_lengths_and_dt_are_the_models(model: SequenceModel, x: Tensor) -> None:
    lengths = torch.tensor([12, 4, 0])
    dt = 0.5 + torch.rand(ROWS, 12, generator=torch.Generator().manual_seed(2))
    expected, _ = model(x, lengths=lengths, dt=dt)
    stateful = StatefulModel(model, ROWS)
    assert close(stateful.forward(x, lengths, dt), expected.detach())
    untouched = stateful.get_states([1])
    stateful.step(x[:, 0], dt=torch.tensor([1.0, 0.0, 1.0]))
    assert same(stateful.get_states([1]), untouched)


def test_states_come_back_bit_for_bit(model: SequenceModel, x: Tensor) -> None:
    stateful = StatefulModel(model, ROWS)
    stateful.forward(x)
    saved = stateful.get_states()
    future = stateful.step(x[:, 0])
    other = StatefulModel(model, ROWS)
    other.set_states(saved)
    assert torch.equal(other.step(x[:, 0]), future)
    other.set_states({name: entry[2:] for name, entry in saved.items()}, rows=[0])
    assert same(other.get_states([0]), {name: entry[2:] for name, entry in saved.items()})


def test_reset_is_fresh(model: SequenceModel, x: Tensor) -> None:
    stateful = StatefulModel(model, ROWS)
    stateful.forward(x)
    kept = stateful.get_states([0])
    stateful.reset([1, 2])
    assert same(stateful.get_states([1, 2]), model.initial_state(2))
    assert same(stateful.get_states([0]), kept)
    stateful.reset()
    assert same(stateful.get_states(), model.initial_state(ROWS))


def test_what_get_states_gives_is_a_copy(model: SequenceModel, x: Tensor) -> None:
    stateful = StatefulModel(model, ROWS)
    for entry in stateful.get_states().values():
        entry.fill_(7.0)
    assert same(stateful.get_states(), model.initial_state(ROWS))


def test_a_bad_row_keeps_its_state(model: SequenceModel, x: Tensor) -> None:
    stateful = StatefulModel(model, ROWS)
    stateful.forward(x)
    before = stateful.get_states([1])
    poisoned = x.clone()
    poisoned[1] = torch.nan
    assert not torch.isfinite(stateful.forward(poisoned)[1]).all()
    assert not torch.isfinite(stateful.step(poisoned[:, 0])[1]).all()
    assert same(stateful.get_states([1]), before)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.popitem(),
        lambda state: state.update(extra=torch.zeros(ROWS)),
        lambda state: state.update({k: v[:2] for k, v in state.items()}),
        lambda state: state.update({k: v.double() for k, v in state.items()}),
        lambda state: state.update({k: v * torch.nan for k, v in state.items()}),
    ],
)
def test_malformed_states_change_nothing(
    model: SequenceModel, change: Callable[[dict[str, Any]], object]
) -> None:
    stateful = StatefulModel(model, ROWS)
    states = {name: entry + 1 for name, entry in stateful.get_states().items()}
    change(states)
    with pytest.raises(StateError) as error:
        stateful.set_states(states)
    assert error.value.code == "state_malformed"
    assert same(stateful.get_states(), model.initial_state(ROWS))


@pytest.mark.parametrize("rows", [[0, 0], [-1], [ROWS]])
def test_rows_are_checked(rows: list[int]) -> None:
    stateful = StatefulModel(build("kssm", "tiny"), ROWS)
    with pytest.raises(InvalidInputError) as error:
        stateful.get_states(rows)
    assert error.value.code == "unknown_row"
    with pytest.raises(InvalidInputError):
        StatefulModel(stateful.model, 0)


def test_shapes_are_checked() -> None:
    stateful = StatefulModel(build("kssm", "tiny"), ROWS)
    for call in (
        lambda: stateful.step(torch.zeros(2, 64)),
        lambda: stateful.step(torch.zeros(ROWS, 65)),
        lambda: stateful.step(torch.zeros(ROWS, 64), dt=torch.ones(2)),
        lambda: stateful.forward(torch.zeros(2, 5, 64)),
        lambda: stateful.forward(torch.zeros(ROWS, 5, 65)),
    ):
        with pytest.raises(KSSMError) as error:
            call()
        assert error.value.code == "wrong_shape"
