"""The compiled CPU step: equal to the torch step, isolated by row, never stale."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kssm.forecast import ForecasterConfig, SignalForecaster
from kssm.forecast.native import NativeModel, build, library
from kssm.forecast.stream import Stream
from kssm.forecast.testing import tiny_forecaster
from kssm.models import State
from tests.forecast.support import (
    CONFIGS,
    assert_close,
    hostile,
    needs_native,
    same_bits,
    shaken,
    with_library,
)

pytestmark = needs_native


@pytest.fixture
def model(compiled: library.Library) -> SignalForecaster:
    return with_library(tiny_forecaster(), compiled)


def compare(model: SignalForecaster, rows: int, steps: int) -> None:
    """Both steps over the same signals, in permuted slots and with padding between the rows."""
    values, dt = hostile(rows, steps)
    slots = torch.randperm(rows + 3, generator=torch.Generator().manual_seed(1))[:rows] + 1
    ours, theirs = model.initial_state(rows + 4), model.initial_state(rows + 4)
    padding = torch.tensor([-1])
    for t in range(steps):
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(t))
        x = torch.cat([values[t, order[:2]], torch.zeros(1).double(), values[t, order[2:]]])
        now = torch.cat([slots[order[:2]], padding, slots[order[2:]]])
        step = None if t % 3 == 0 else torch.cat([dt[t, :2], torch.ones(1).double(), dt[t, 2:]])
        done = model.native.step_(model, x, ours, now, step)
        assert done is not None
        expected = model.step_torch_(x, theirs, now, step)
        live = now >= 0
        assert torch.equal(done[1][live], expected.healthy[live])
        torch.testing.assert_close(
            done[0][live], expected.tail[live], rtol=1e-3, atol=1e-7, equal_nan=True
        )
        if t % 10 == 0:
            assert_close(ours, theirs, slots)
    assert_close(ours, theirs, slots)


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_the_torch_step(compiled: library.Library, name: str) -> None:
    config, rows, steps = CONFIGS[name]
    compare(with_library(shaken(config), compiled), rows, steps)


def test_equals_the_torch_step_over_hundreds_of_steps(model: SignalForecaster) -> None:
    compare(model, 11, 400)


def test_is_as_accurate_as_torch(compiled: library.Library) -> None:
    model = with_library(shaken(ForecasterConfig()), compiled)
    exact = copy.deepcopy(model).double()
    exact.embed.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    values, dt = hostile(8, 20)
    slots = torch.arange(1, 9)
    ours, theirs = model.initial_state(9), model.initial_state(9)
    truth = {name: entry.double() for name, entry in model.initial_state(9).items()}
    for x, step in zip(values, dt, strict=True):
        model.step_(x, ours, slots, step)
        model.step_torch_(x, theirs, slots, step)
        exact.step_torch_(x, truth, slots, step)

    def error(arena: State) -> float:
        names = [name for name in truth if name != "scaler"]
        differences = [(arena[n] - truth[n]).abs().mean() / truth[n].abs().max() for n in names]
        return float(torch.stack(differences).mean())

    assert error(ours) <= 2 * error(theirs)


def test_streaming_equals_prefill(model: SignalForecaster) -> None:
    values, _ = hostile(6, 80)
    values = values.t().contiguous()
    arena, slots = model.initial_state(7), torch.arange(1, 7)
    tails = [model.step_(values[:, t], arena, slots).tail for t in range(80)]
    whole = model.prefill(values, model.initial_state(6))
    torch.testing.assert_close(
        torch.stack(tails, 1), whole.tail, rtol=1e-3, atol=1e-6, equal_nan=True
    )
    streamed = model.forecast({name: entry[slots] for name, entry in arena.items()}, 40, (0.5,))
    torch.testing.assert_close(streamed, model.forecast(whole.state, 40, (0.5,)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 9, 31, 32, 33, 70, 129])
def test_a_row_is_computed_alike_in_any_batch(
    model: SignalForecaster, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    values = torch.randn(4, rows, generator=torch.Generator().manual_seed(0)).double()
    batch, alone = model.initial_state(rows + 1), model.initial_state(rows + 1)
    slots, some = torch.arange(rows, 0, -1), {0, rows // 2, rows - 1}
    for x in values:
        together = model.step_(x, batch, slots)
        for row in some:
            single = model.step_(x[row : row + 1], alone, slots[row : row + 1])
            assert same_bits(single.tail, together.tail[row : row + 1])
    for row in some:
        for name, entry in batch.items():
            assert torch.equal(entry[slots[row]], alone[name][slots[row]])


def test_a_corrupt_row_keeps_its_state_and_harms_no_other(model: SignalForecaster) -> None:
    clean = model.initial_state(4)
    slots = torch.tensor([3, -1, 1])
    for x in torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).double():
        model.step_(x, clean, slots)
    for name in clean:
        corrupt = {key: entry.clone() for key, entry in clean.items()}
        corrupt[name][3].flatten()[1] = math.nan
        before = {key: entry.clone() for key, entry in corrupt.items()}
        expected = {key: entry.clone() for key, entry in clean.items()}
        out = model.step_(torch.ones(3).double(), corrupt, slots)
        model.step_(torch.ones(3).double(), expected, slots)
        for key in clean:
            assert torch.equal(corrupt[key][1], expected[key][1])
            assert torch.equal(corrupt[key][[0, 2]], before[key][[0, 2]])
            if name != "forecast":
                assert same_bits(corrupt[key][3], before[key][3])
        assert out.healthy.tolist() == [name == "forecast", True, True]


def step_both(model: SignalForecaster) -> tuple[State, State]:
    arenas = model.initial_state(2), model.initial_state(2)
    x, slots = torch.ones(1).double(), torch.tensor([1])
    done = model.native.step_(model, x, arenas[0], slots, None)
    assert done is not None
    model.step_torch_(x, arenas[1], slots)
    return arenas


def train_a_little(model: SignalForecaster) -> None:
    model.requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.embed.weight.sum().backward()
    optimizer.step()


def write_data(model: SignalForecaster) -> None:
    model.head.bias.data.add_(1.0)
    model.native.forget()


def load(model: SignalForecaster, *, assign: bool) -> None:
    model.load_state_dict(tiny_forecaster(seed=1).state_dict(), assign=assign)


CHANGES: dict[str, Callable[[SignalForecaster], object]] = {
    "one weight": lambda m: m.get_parameter("backbone.blocks.1.skip").requires_grad_(False).mul_(2),
    "optimizer": train_a_little,
    "load": lambda m: load(m, assign=False),
    "assign": lambda m: load(m, assign=True),
    "head": lambda m: setattr(m, "head", tiny_forecaster(seed=1).head),
    "replaced bias": lambda m: setattr(m.head, "bias", torch.nn.Parameter(m.head.bias + 1.0)),
    "forget": write_data,
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_seen(model: SignalForecaster, change: str) -> None:
    old, _ = step_both(model)
    CHANGES[change](model)
    ours, theirs = step_both(model)
    assert_close(ours, theirs, torch.tensor([1]))
    assert not torch.equal(ours["forecast"], old["forecast"])


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_have_their_own_weights(
    model: SignalForecaster, clone: Callable[[SignalForecaster], SignalForecaster]
) -> None:
    model.native = NativeModel()
    step_both(model)
    other = clone(model)
    other.head.bias.requires_grad_(False).add_(1.0)
    ours, theirs = step_both(other)
    assert_close(ours, theirs, torch.tensor([1]))
    assert not torch.equal(step_both(model)[0]["forecast"], ours["forecast"])


UNFIT: dict[str, Callable[[SignalForecaster], object]] = {
    "training": lambda m: m.train(),
    "double": lambda m: m.double(),
    "another weight": lambda m: m.embed.register_parameter("extra", m.head.bias),
}


@pytest.mark.parametrize("change", UNFIT)
def test_other_models_run_in_torch(model: SignalForecaster, change: str) -> None:
    step_both(model)
    UNFIT[change](model)
    arena, expected = model.initial_state(2), model.initial_state(2)
    x, slots = torch.ones(1).double(), torch.tensor([1])
    model.native.forget()
    assert model.native.step_(model, x, arena, slots, None) is None
    if change != "double":
        model.step_(x, arena, slots)
        model.step_torch_(x, expected, slots)
        assert all(torch.equal(arena[name], expected[name]) for name in arena)


def test_other_arguments_run_in_torch(model: SignalForecaster) -> None:
    x, slots = torch.ones(2).double(), torch.tensor([1, 2])
    arena = model.initial_state(3)
    strided = {**arena, "scaler": torch.zeros(7, 3).double().t()}
    short = {**arena, "forecast": arena["forecast"][:2]}
    half = {**arena, "layers.0.state": arena["layers.0.state"].double()}
    for entries in (strided, short, half):
        assert model.native.step_(model, x, entries, slots, None) is None
    for values, rows, dt in (
        (x.float(), slots, None),
        (x, slots.int(), None),
        (x[:1], slots, None),
        (x, slots, torch.ones(3).double()),
        (torch.ones(4).double()[::2], slots, None),
    ):
        assert model.native.step_(model, values, arena, rows, dt) is None


def test_a_slot_outside_the_arena_is_refused(model: SignalForecaster) -> None:
    arena = model.initial_state(2)
    with pytest.raises(IndexError):
        model.step_(torch.ones(2).double(), arena, torch.tensor([1, 2]))
    assert not arena["scaler"].any()


def test_without_a_library_torch_does_it() -> None:
    model = with_library(tiny_forecaster(), None)
    stream, expected = Stream(model), Stream(with_library(tiny_forecaster(), library.load()))
    for value in (1.0, 2.0, math.nan, 4.0):
        score = stream.push(value)
        np.testing.assert_allclose(score, expected.push(value), rtol=1e-4)
    np.testing.assert_allclose(stream.forecast(), expected.forecast(), rtol=1e-4)


def test_empty_batches_are_fine(model: SignalForecaster) -> None:
    out = model.step_(torch.empty(0).double(), model.initial_state(1), torch.empty(0).long())
    assert out.tail.shape == out.healthy.shape == (0,)


class TestLibrary:
    def test_can_be_switched_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(library.SWITCH, "0")
        assert library.load.__wrapped__() is None

    def test_is_compiled_once_into_the_cache(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(library, "SHIPPED", tmp_path)
        assert library.load.__wrapped__() is not None
        monkeypatch.setattr(build, "compiler", lambda: None)
        assert library.load.__wrapped__() is not None
        assert len(list(library.cache_folder().iterdir())) == 1

    def test_is_not_taken_from_where_others_can_write(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(library, "SHIPPED", tmp_path)
        library.cache_folder().mkdir(parents=True)
        library.cache_folder().chmod(0o777)
        assert library.load.__wrapped__() is None

    @pytest.mark.parametrize("command", [None, ["false"], ["/no/such/compiler"]])
    def test_is_done_without_when_it_cannot_be_compiled(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: list[str] | None
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(library, "SHIPPED", tmp_path)
        monkeypatch.setattr(build, "compiler", lambda: command)
        assert library.load.__wrapped__() is None
        assert list(library.cache_folder().iterdir()) == []
