"""Rows with thinned copies in compiled code: one pass over the weights for all that is due.

The reference takes one resolution after the other (``*_apart``), with the same compiled code for
each, so model states must be equal to the bit; the contest is in float64 in another order of sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kssm.errors import InvalidInputError
from kssm.forecast.forecaster import ForecasterConfig, SignalForecaster
from kssm.forecast.native import library
from kssm.forecast.resolutions import MultiResolutionForecaster
from kssm.models import KSSMConfig, State
from tests.forecast.support import ROWS, needs_native, signals, with_library

pytestmark = needs_native

JOINING = ("clock", "block", "rivals", "rivals_scale", "contest")
# Blocks longer than a tile, and so short that a tile holds several.
SHAPES = {"64": (64, (4, 16)), "8": (8, (2, 4, 8)), "one copy": (12, (3,))}


def make(head_horizon: int, thinning: tuple[int, ...]) -> MultiResolutionForecaster:
    backbone = KSSMConfig(d_model=24, n_layers=2, d_inner=24, d_mlp=20, rank=3, group_size=12)
    config = ForecasterConfig(backbone, head_horizon, head_hidden=20, thinning=thinning)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = MultiResolutionForecaster(config).eval().requires_grad_(False)
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return model


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys(), scope="module")
def model(request: pytest.FixtureRequest) -> MultiResolutionForecaster:
    return make(*request.param)


def assert_alike(actual: State, expected: State) -> None:
    """Model states equal to the bit, what joins the resolutions to rounding."""
    assert actual.keys() == expected.keys()
    for name, entry in expected.items():
        exact = name not in JOINING
        tolerance = 0.0 if exact else 1e-6 if entry.dtype is torch.float32 else 1e-10
        torch.testing.assert_close(
            actual[name],
            entry,
            rtol=tolerance,
            atol=0.0 if exact else 1e-9,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize("spaced", [True, False])
def test_prefill_is_that_of_the_resolutions_apart(
    model: MultiResolutionForecaster, spaced: bool
) -> None:
    values, dt = signals()
    steps = dt if spaced else None
    lengths = torch.tensor([130, 129, 64, 63, 1, 0])
    state = model.initial_state(ROWS)
    for part in (slice(0, 97), slice(97, 130)):
        left = (lengths - part.start).clamp(0, part.stop - part.start)
        spacing = None if steps is None else steps[:, part]
        ours = model.prefill(values[:, part], state, left, spacing)
        theirs = model.prefill_apart(values[:, part], state, left, spacing)
        assert_alike(ours.state, theirs.state)
        torch.testing.assert_close(ours.tail, theirs.tail, rtol=0, atol=0, equal_nan=True)
        state = ours.state


def steps_of(
    step: Callable[..., Any], arena: State, values: Tensor, dt: Tensor
) -> list[tuple[Tensor, Tensor]]:
    slots = torch.tensor([3, -1, 1, 6, 2, 5])
    order = (slots - 1).clamp_min(0)
    return [step(values[order, t], arena, slots, dt[order, t]) for t in range(values.shape[1])]


def test_steps_are_those_of_the_resolutions_apart(model: MultiResolutionForecaster) -> None:
    values, dt = signals()
    ours, theirs = model.initial_state(ROWS + 1), model.initial_state(ROWS + 1)
    got = steps_of(model.step_, ours, values, dt)
    expected = steps_of(model.step_apart_, theirs, values, dt)
    for (tail, healthy), (wanted, sound) in zip(got, expected, strict=True):
        assert torch.equal(healthy, sound)
        torch.testing.assert_close(tail, wanted, rtol=0, atol=0, equal_nan=True)
    rows = torch.tensor([1, 2, 3, 4, 5, 6])
    assert_alike({n: t[rows] for n, t in ours.items()}, {n: t[rows] for n, t in theirs.items()})


def test_steps_leave_the_bits_of_prefill(model: MultiResolutionForecaster) -> None:
    values, dt = signals()
    whole = model.prefill(values, model.initial_state(ROWS), dt=dt)
    arena, slots = model.initial_state(ROWS + 1), torch.arange(1, ROWS + 1)
    for t in range(values.shape[1]):
        tail = model.step_(values[:, t].contiguous(), arena, slots, dt[:, t].contiguous()).tail
        torch.testing.assert_close(tail, whole.tail[:, t], rtol=0, atol=0, equal_nan=True)
    for name, entry in whole.state.items():
        assert torch.equal(arena[name][1:], entry), name


@pytest.mark.parametrize("rotten", ["row", "copy"])
def test_unhealthy_rows_stay_as_they_were(rotten: str) -> None:
    """A row with all its copies; of a copy that is, the row itself goes on."""
    model = make(8, (2, 4))
    values, dt = (part[:3] for part in signals(tokens=40))
    arena = model.initial_state(4)
    slots = torch.tensor([1, 2, 3])
    for t in range(21):
        model.step_(values[:, t].contiguous(), arena, slots, dt[:, t].contiguous())
    layer = next(name for name in model.backbone.state_spec())
    spoilt = arena[layer if rotten == "row" else f"every2.{layer}"]
    spoilt[2] = torch.nan
    other = {name: entry.clone() for name, entry in arena.items()}
    before = {name: entry[2].clone() for name, entry in arena.items()}
    for t in range(21, 40):
        sample = values[:, t].contiguous(), dt[:, t].contiguous()
        healthy = model.step_(sample[0], arena, slots, sample[1]).healthy
        assert healthy.tolist() == [True, rotten == "copy", True]
        model.step_apart_(sample[0], other, slots, sample[1])
    assert_alike(arena, other)
    if rotten == "row":
        for name, entry in before.items():
            torch.testing.assert_close(arena[name][2], entry, rtol=0, atol=0, equal_nan=True)


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(8, (2, 4))
    values, dt = signals(rows=70, tokens=9)
    arenas = [model.initial_state(71) for _ in range(2)]
    for threads, arena in zip((1, 3), arenas, strict=True):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        for t in range(9):
            slots = torch.arange(1, 71)
            model.step_(values[:, t].contiguous(), arena, slots, dt[:, t].contiguous())
    for name, entry in arenas[0].items():
        assert torch.equal(entry, arenas[1][name]), name


@pytest.mark.parametrize("horizon", [1, 7, 8, 64, 65, 200])
@pytest.mark.parametrize("levels", [(0.1, 0.5, 0.9), (0.01, 0.25, 0.999)], ids=str)
def test_forecasts_are_those_of_the_resolutions_apart(
    model: MultiResolutionForecaster,
    horizon: int,
    levels: tuple[float, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(8)
    values = torch.from_numpy(rng.normal(size=(4, 900)).cumsum(axis=1) + 50.0)
    lengths = torch.tensor([900, 893, 30, 0])
    state = model.prefill(values, model.initial_state(4), lengths).state
    if model.config.head_horizon < 64:
        assert (state["contest"][0, ..., 2] > 0).all(), "the copies take part"
    ours = model.forecast(state, horizon, levels)
    monkeypatch.setattr(library, "load", lambda: None)
    theirs = model.forecast(state, horizon, levels)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=0, equal_nan=True)
    assert ours[3].isnan().all()


@pytest.mark.parametrize("horizon", [5, 30])
def test_forecasts_at_one_resolution_are_torchs(
    horizon: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SignalForecaster(ForecasterConfig(KSSMConfig(d_model=32), head_horizon=16)).eval()
    values, _ = signals()
    state = model.prefill(values, model.initial_state(ROWS)).state
    ours = model.forecast(state, horizon, (0.02, 0.3, 0.55))
    monkeypatch.setattr(library, "load", lambda: None)
    theirs = model.forecast(state, horizon, (0.02, 0.3, 0.55))
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=0, equal_nan=True)


def test_forecasts_need_a_horizon() -> None:
    model = make(8, (2,))
    with pytest.raises(InvalidInputError) as caught:
        model.forecast(model.initial_state(1), 0, (0.5,))
    assert caught.value.code == "invalid_horizon"


def test_without_the_library_the_resolutions_are_read_apart() -> None:
    model = with_library(make(8, (2,)), None)
    assert isinstance(model, MultiResolutionForecaster)
    values, _ = signals(tokens=20)
    plain = model.prefill(values, model.initial_state(ROWS)).state
    compiled = make(8, (2,)).prefill(values, model.initial_state(ROWS)).state
    for name, entry in plain.items():
        if name not in JOINING:
            scale = entry.abs().amax()
            torch.testing.assert_close(compiled[name], entry, rtol=1e-4, atol=1e-5 * float(scale))


@pytest.mark.parametrize("thinning", [(), (2, 4)])
def test_forecasts_of_arena_rows_need_no_copy(thinning: tuple[int, ...]) -> None:
    model = make(8, (2, 4)) if thinning else SignalForecaster(make(8, (2, 4)).config).eval()
    values, dt = signals()
    arena = model.initial_state(ROWS + 1)
    for t in range(60):
        model.step_(values[:, t].contiguous(), arena, torch.arange(1, ROWS + 1), dt[:, t].clone())
    slots = torch.tensor([5, 2, 6])
    levels = (0.05, 0.5)
    read = model.forecast_rows(arena, slots, 8, levels)
    assert read is not None
    copied = {name: entry[slots] for name, entry in arena.items()}
    assert torch.equal(read, model.forecast(copied, 8, levels))
    assert model.forecast_rows(arena, slots, 9, levels) is None


@pytest.mark.parametrize("threads", [1, 3])
def test_groups_go_on_together_or_not_at_all(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(8, (2, 4))
    rng = np.random.default_rng(4)
    values = torch.from_numpy(rng.normal(size=(12, 90)).cumsum(axis=0))
    dt = torch.ones(90, dtype=torch.float64)
    slots = torch.from_numpy(rng.permutation(90) + 1)
    groups = torch.repeat_interleave(torch.arange(6), torch.tensor([1, 15, 16, 2, 40, 16]))
    assert model.rows_together == 16
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    arenas = [model.initial_state(91) for _ in range(2)]
    for sample in values:
        model.step_(sample, arenas[0], slots, dt)
        output = model.step_together_(sample, arenas[1], slots, dt, groups)
        assert output is not None
        assert output.healthy.all()
    for name, entry in arenas[0].items():
        assert torch.equal(entry, arenas[1][name]), name
    arena = arenas[1]
    name = next(iter(model.backbone.state_spec()))
    sick = torch.tensor([0, 15, 33, 74])  # a place in four of the six groups
    arena[name][slots[sick]] = torch.nan
    before = {entry: tensor.clone() for entry, tensor in arena.items()}
    output = model.step_together_(values[0], arena, slots, dt, groups)
    assert output is not None
    kept = torch.isin(groups, groups[sick])
    assert torch.equal(output.healthy, ~kept)
    for entry, tensor in arena.items():
        torch.testing.assert_close(
            tensor[slots[kept]], before[entry][slots[kept]], rtol=0, atol=0, equal_nan=True
        )
    clock = arena["clock"][:, 0] - before["clock"][:, 0]
    assert torch.equal(clock[slots], (~kept).double())


def test_without_the_library_nothing_goes_on_together() -> None:
    model = with_library(make(8, (2,)), None)
    sample = torch.ones(1, dtype=torch.float64)
    slots = torch.tensor([1])
    assert model.rows_together == 0
    assert model.step_together_(sample, model.initial_state(2), slots, sample, slots) is None
