"""The forecaster: streaming equals prefill, rows are independent, bad values stay contained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kssm.errors import InvalidInputError
from kssm.forecast import SignalForecaster
from kssm.forecast.testing import tiny_forecaster
from kssm.models import State

LEVELS = (0.05, 0.1, 0.5, 0.77, 0.9)


@pytest.fixture(scope="module")
def model() -> SignalForecaster:
    return tiny_forecaster()


def signals(rows: int = 3, length: int = 60) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, length, generator=generator, dtype=torch.float64).cumsum(1)
    x[1] = 1e9 + 1e-3 * x[1]
    x[:, 20:26] = torch.nan
    x[-1, 0] = torch.nan
    return x


def stream(
    model: SignalForecaster, values: Tensor, state: State | None = None, dt: Tensor | None = None
) -> tuple[State, Tensor]:
    rows = values.shape[0]
    arena = model.initial_state(rows + 1)
    slots = torch.arange(rows, 0, -1)
    for name, entry in (state or {}).items():
        arena[name][slots] = entry
    tails = [
        model.step_(values[:, t], arena, slots, None if dt is None else dt[:, t]).tail
        for t in range(values.shape[1])
    ]
    return {name: entry[slots] for name, entry in arena.items()}, torch.stack(tails, 1)


def assert_same_forecast(model: SignalForecaster, a: State, b: State, horizon: int = 40) -> None:
    first, second = model.forecast(a, horizon, LEVELS), model.forecast(b, horizon, LEVELS)
    spread = first[..., -1] - first[..., 0]
    assert ((first - second).abs() <= 1e-4 * spread.unsqueeze(-1) + 1e-12).all()


@pytest.mark.parametrize("cut", [0, 1, 22, 59, 60])
@pytest.mark.parametrize("timed", [False, True])
def test_streaming_equals_prefill(model: SignalForecaster, cut: int, timed: bool) -> None:
    x = signals()
    dt = 0.5 + torch.rand(x.shape, generator=torch.Generator().manual_seed(1)).double()
    steps = dt if timed else None
    whole = model.prefill(x, model.initial_state(3), dt=steps)
    state, tails = model.initial_state(3), torch.empty(3, 0, dtype=torch.float64)
    if cut:
        state, tails = model.prefill(x[:, :cut], state, dt=None if steps is None else dt[:, :cut])
    if cut < x.shape[1]:
        state, rest = stream(model, x[:, cut:], state, None if steps is None else dt[:, cut:])
        tails = torch.cat([tails, rest], dim=1)
    assert_same_forecast(model, state, whole.state)
    assert torch.equal(tails.isnan(), whole.tail.isnan())
    assert torch.allclose(tails, whole.tail, rtol=1e-4, atol=1e-7, equal_nan=True)


def test_lengths_continue_each_row_by_its_own(model: SignalForecaster) -> None:
    x = signals()
    lengths = torch.tensor([60, 13, 0])
    out = model.prefill(x, model.initial_state(3), lengths)
    alone = model.prefill(x[1:2, :13], model.initial_state(1)).state
    assert_same_forecast(model, {n: e[1:2] for n, e in out.state.items()}, alone)
    fresh = model.initial_state(1)
    assert all(torch.equal(out.state[name][2:], fresh[name]) for name in fresh)


def test_quantiles_never_cross_and_follow_levels(model: SignalForecaster) -> None:
    state = model.prefill(signals(), model.initial_state(3)).state
    levels = tuple(np.linspace(0.001, 0.999, 41).tolist())
    q = model.forecast(state, 40, levels)
    assert torch.isfinite(q).all()
    assert (q.diff(dim=-1) >= 0).all()
    nine = model.forecast(state, 40, (0.1, 0.5, 0.9))
    assert torch.equal(nine[:, :, 1], model.forecast(state, 40, (0.5,))[..., 0])
    assert torch.equal(nine[:, :16], model.forecast(state, 16, (0.1, 0.5, 0.9)))


def test_forecast_leaves_the_state_alone(model: SignalForecaster) -> None:
    state = model.prefill(signals(), model.initial_state(3)).state
    copy = {name: entry.clone() for name, entry in state.items()}
    model.forecast(state, 100, LEVELS)
    assert all(torch.equal(state[name], copy[name]) for name in copy)


@pytest.mark.parametrize("horizon", [1, 16, 17, 40])
def test_forecasts_read_only_the_entries_they_name(model: SignalForecaster, horizon: int) -> None:
    state = model.prefill(signals(), model.initial_state(3)).state
    part = {name: state[name] for name in model.forecast_entries(horizon)}
    assert len(part) == (2 if horizon <= 16 else len(state))
    assert torch.equal(
        model.forecast(part, horizon, LEVELS), model.forecast(state, horizon, LEVELS)
    )


def test_rows_without_any_value_forecast_nan(model: SignalForecaster) -> None:
    x = signals()
    x[1] = torch.nan
    q = model.forecast(model.prefill(x, model.initial_state(3)).state, 5, LEVELS)
    assert q[1].isnan().all()
    assert torch.isfinite(q[[0, 2]]).all()


@pytest.mark.parametrize(
    "values",
    [
        torch.zeros(50),
        torch.full((50,), 5.0),
        torch.full((50,), -9e29),
        torch.cat([torch.full((25,), 9e29), torch.full((25,), -9e29)]),
        torch.randn(50, generator=torch.Generator().manual_seed(0)) * 1e-28,
        torch.cat([torch.ones(40), torch.full((10,), 1e12)]),
    ],
)
def test_extreme_signals_stay_finite(model: SignalForecaster, values: Tensor) -> None:
    x = values.double().unsqueeze(0)
    whole = model.prefill(x, model.initial_state(1))
    state, _ = stream(model, x)
    assert_same_forecast(model, state, whole.state)
    assert torch.isfinite(model.forecast(state, 40, LEVELS)).all()
    assert all(torch.isfinite(entry).all() for entry in state.values())


def test_shift_and_scale_carry_over(model: SignalForecaster) -> None:
    x = signals()[:1]
    base = model.forecast(model.prefill(x, model.initial_state(1)).state, 10, LEVELS)
    y = 1024.0 * x - 512.0
    other = model.forecast(model.prefill(y, model.initial_state(1)).state, 10, LEVELS)
    assert torch.allclose(other, 1024.0 * base - 512.0, rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    bad=st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e300]),
    victim=st.integers(0, 3),
    when=st.integers(0, 9),
)
def test_one_rows_bad_values_change_no_bit_elsewhere(bad: float, victim: int, when: int) -> None:
    model = tiny_forecaster()
    x = torch.randn(4, 10, generator=torch.Generator().manual_seed(2)).double()
    poisoned = x.clone()
    poisoned[victim, when:] = bad
    others = [row for row in range(4) if row != victim]
    clean, _ = stream(model, x)
    dirty, _ = stream(model, poisoned)
    assert all(torch.equal(clean[name][others], dirty[name][others]) for name in clean)
    a = model.prefill(x, model.initial_state(4)).state
    b = model.prefill(poisoned, model.initial_state(4)).state
    assert all(torch.equal(a[name][others], b[name][others]) for name in a)


def test_corrupted_row_is_reported_and_not_advanced(model: SignalForecaster) -> None:
    arena = model.initial_state(4)
    slots = torch.tensor([1, 2, 3])
    for t in range(5):
        model.step_(torch.tensor([1.0, 2.0, 3.0]).double() * t, arena, slots)
    arena["layers.0.state"][2] = torch.nan
    before = {name: entry[2].clone() for name, entry in arena.items()}
    out = model.step_(torch.tensor([5.0, 5.0, 5.0]).double(), arena, slots)
    assert out.healthy.tolist() == [True, False, True]
    assert torch.equal(arena["scaler"][2], before["scaler"])
    assert torch.equal(arena["forecast"][2], before["forecast"])


def test_surprise_has_a_small_tail_probability(model: SignalForecaster) -> None:
    x = torch.sin(torch.arange(80).double() / 5).unsqueeze(0)
    usual, _ = stream(model, x)
    arena = model.initial_state(2)
    slots = torch.tensor([1])
    for name, entry in usual.items():
        arena[name][slots] = entry
    spike = model.step_(torch.tensor([100.0]).double(), arena, slots).tail
    assert 0 <= float(spike) < 1e-6


def test_no_scores_before_eight_samples(model: SignalForecaster) -> None:
    x = torch.cat([torch.full((9,), 5.0), torch.tensor([6.0])]).double().unsqueeze(0)
    x[0, 2] = torch.nan
    _, tails = stream(model, x)
    assert tails[0, :9].isnan().all()
    assert tails[0, 9] < 1e-6
    assert torch.equal(model.prefill(x, model.initial_state(1)).tail.isnan(), tails.isnan())


def test_bad_arguments(model: SignalForecaster) -> None:
    state = model.prefill(signals(), model.initial_state(3)).state
    for levels in ((), (0.0,), (1.0,), (0.5, float("nan"))):
        with pytest.raises(InvalidInputError) as error:
            model.forecast(state, 5, levels)
        assert error.value.code == "invalid_quantiles"
    with pytest.raises(InvalidInputError) as error:
        model.forecast(state, 0, LEVELS)
    assert error.value.code == "invalid_horizon"
    with pytest.raises(InvalidInputError):
        model.prefill(signals(2), model.initial_state(3))
    with pytest.raises(InvalidInputError):
        model.prefill(signals(3)[:, :0], model.initial_state(3))


def test_fingerprint_follows_the_weights() -> None:
    a, b = tiny_forecaster(), tiny_forecaster()
    assert a.fingerprint == b.fingerprint
    assert a.fingerprint != tiny_forecaster(seed=1).fingerprint
    with torch.no_grad():
        b.embed.bias[0] += 1e-3
    assert a.fingerprint != b.fingerprint
