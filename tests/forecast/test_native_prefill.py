"""The compiled prefill and roll-out: the same bits as compiled steps, close to torch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kssm.forecast import ForecasterConfig, SignalForecaster
from kssm.forecast.native import NativeModel, library
from kssm.forecast.native.calls import PrefillCall
from kssm.forecast.testing import tiny_forecaster
from tests.forecast.support import (
    CONFIGS,
    ROWS,
    TOKENS,
    assert_close,
    assert_same,
    needs_native,
    same_bits,
    shaken,
    signals,
    stepped,
    with_library,
)

pytestmark = needs_native

SETTINGS = settings(max_examples=25, deadline=None)


@pytest.fixture
def model(compiled: library.Library) -> SignalForecaster:
    return with_library(tiny_forecaster(), compiled)


@pytest.fixture(scope="module")
def tiny() -> SignalForecaster:
    return tiny_forecaster()


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_gives_the_bits_of_steps(
    compiled: library.Library,
    name: str,
    ragged: bool,
    timed: bool,
) -> None:
    config, rows, _ = CONFIGS[name]
    model = with_library(shaken(config), compiled)
    values, dt = signals(rows)
    lengths = torch.tensor([TOKENS, 0, 1, 49, 97, 48, 2, 0, 5][:rows])
    ends = lengths if ragged else torch.full((rows,), TOKENS)
    out = model.prefill(
        values, model.initial_state(rows), lengths if ragged else None, dt if timed else None
    )
    state, tails = stepped(model, values, ends, dt if timed else None)
    assert_same(out.state, state)
    assert same_bits(out.tail, tails)


@SETTINGS
@given(st.sets(st.integers(1, TOKENS - 1), max_size=6), st.integers(1, ROWS), st.booleans())
def test_cuts_and_neighbours_do_not_matter(
    tiny: SignalForecaster, cuts: set[int], rows: int, timed: bool
) -> None:
    values, dt = signals()
    whole = tiny.prefill(values, tiny.initial_state(ROWS), dt=dt if timed else None)
    state, tails = tiny.initial_state(rows), []
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), TOKENS], strict=True):
        steps = dt[:rows, start:stop] if timed else None
        state, tail = tiny.prefill(values[:rows, start:stop], state, dt=steps)
        tails.append(tail)
    assert_same(state, {name: entry[:rows] for name, entry in whole.state.items()})
    assert same_bits(torch.cat(tails, 1), whole.tail[:rows])


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_torch(compiled: library.Library, name: str) -> None:
    config, rows, tokens = CONFIGS[name]
    model = with_library(shaken(config), compiled)
    values, dt = signals(rows, tokens)
    lengths = torch.tensor([tokens, 3, tokens - 1, 0, 40, 17, 1, 2, tokens][:rows])
    for ends in (None, lengths):
        start = model.prefill_torch(values, model.initial_state(rows)).state
        before = {name: entry.clone() for name, entry in start.items()}
        actual = model.prefill(values, start, ends, dt)
        expected = model.prefill_torch(values, start, ends, dt)
        assert_same(start, before)
        assert actual.state.keys() == expected.state.keys()
        assert_close(actual.state, expected.state, torch.arange(rows))
        valid = torch.arange(tokens) < (expected_ends(ends, rows, tokens)[:, None])
        assert actual.tail[~valid].isnan().all()
        torch.testing.assert_close(
            actual.tail[valid], expected.tail[valid], rtol=1e-3, atol=1e-7, equal_nan=True
        )


def expected_ends(lengths: Tensor | None, rows: int, tokens: int) -> Tensor:
    return torch.full((rows,), tokens) if lengths is None else lengths


def test_does_not_share_memory_with_the_given_state(tiny: SignalForecaster) -> None:
    state = tiny.initial_state(2)
    out = tiny.prefill(torch.ones(2, 3).double(), state, torch.tensor([0, 3]))
    assert not any(entry.any() for entry in state.values())
    assert not any(entry[0].any() for entry in out.state.values())
    assert out.state["forecast"][1].any()


@pytest.mark.parametrize("reads", [1, 2, 5])
@torch.inference_mode()
def test_rolls_out_as_steps_do(model: SignalForecaster, reads: int) -> None:
    values, _ = signals()
    state = model.prefill(values, model.initial_state(ROWS)).state
    before = {name: entry.clone() for name, entry in state.items()}
    rolled = model.native.roll_out(model, state, reads)
    assert rolled is not None
    assert_same(state, before)
    direct = model.config.head_horizon
    arena = {name: torch.cat([entry[:1], entry]) for name, entry in state.items()}
    slots, missing = torch.arange(1, ROWS + 1), torch.full((ROWS,), torch.nan).double()
    for read in range(reads):
        for _ in range(direct):
            model.step_(missing, arena, slots)
        part = rolled[:, read * direct : (read + 1) * direct]
        assert same_bits(part.contiguous(), arena["forecast"][1:].contiguous())
    expected = model._roll_out(state, reads)
    torch.testing.assert_close(rolled, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_forecasts_past_the_head_equal_torch(tiny: SignalForecaster) -> None:
    values, _ = signals()
    plain = with_library(tiny_forecaster(), None)
    state = tiny.prefill(values, tiny.initial_state(ROWS)).state
    ours, theirs = tiny.forecast(state, 70, (0.1, 0.5)), plain.forecast(state, 70, (0.1, 0.5))
    assert ours.shape == (ROWS, 70, 2)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)


@pytest.mark.parametrize("threads", [2, 3, 16])
def test_threads_give_the_same_bits(
    tiny: SignalForecaster, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, dt = signals()
    ranges: list[range] = []
    advance = PrefillCall._advance

    def noted(call: PrefillCall, rows: range) -> None:
        ranges.append(rows)
        advance(call, rows)

    monkeypatch.setattr(PrefillCall, "_advance", noted)
    for lengths in (None, torch.tensor([0, TOKENS, 1, 0, 60, 0]), torch.zeros(ROWS).int()):
        alone = tiny.prefill(values, tiny.initial_state(ROWS), lengths, dt)
        ranges.clear()
        with monkeypatch.context() as patch:
            patch.setattr(torch, "get_num_threads", lambda: threads)
            shared = tiny.prefill(values, tiny.initial_state(ROWS), lengths, dt)
        taken = [row for rows in ranges for row in rows]
        assert len(taken) == len(set(taken))
        assert_same(shared.state, alone.state)
        assert same_bits(shared.tail, alone.tail)
        if lengths is None:
            assert len(ranges) == min(threads, ROWS)


def test_a_corrupt_row_shows_it_and_harms_no_other(model: SignalForecaster) -> None:
    values, _ = signals()
    values = values.nan_to_num(1.0, 1.0, 1.0)
    start = model.prefill(values, model.initial_state(ROWS)).state
    expected = model.prefill(values, start)
    others = torch.tensor([0, 1, 3, 4, 5])
    for name in set(start) - {"forecast"}:
        corrupt = {key: entry.clone() for key, entry in start.items()}
        corrupt[name][2].flatten()[1] = math.nan
        out = model.prefill(values, corrupt)
        finite = torch.stack([e.isfinite().flatten(1).all(1) for e in out.state.values()]).all(0)
        assert finite.tolist() == [row != 2 for row in range(ROWS)]
        assert_same(
            {key: entry[others] for key, entry in out.state.items()},
            {key: entry[others] for key, entry in expected.state.items()},
        )
        assert same_bits(out.tail[others], expected.tail[others])


def test_samples_past_the_end_are_not_looked_at(tiny: SignalForecaster) -> None:
    values, dt = signals()
    lengths = torch.tensor([5, 0, 50, 130, 129, 1])
    expected = tiny.prefill(values, tiny.initial_state(ROWS), lengths, dt)
    past = torch.arange(TOKENS) >= lengths[:, None]
    for filler in (0.0, math.nan, 1e300):
        out = tiny.prefill(
            values.masked_fill(past, filler),
            tiny.initial_state(ROWS),
            lengths,
            dt.masked_fill(past, filler),
        )
        assert_same(out.state, expected.state)
        assert same_bits(out.tail, expected.tail)


def test_any_layout_of_the_arguments_will_do(tiny: SignalForecaster) -> None:
    values, dt = signals()
    expected = tiny.prefill(values, tiny.initial_state(ROWS), torch.full((ROWS,), 99), dt)
    turned = {
        name: entry.transpose(0, -1).contiguous().transpose(0, -1)
        for name, entry in tiny.initial_state(ROWS).items()
    }
    lengths = torch.full((2 * ROWS,), 99, dtype=torch.int32)[::2]
    done = tiny.native.prefill(
        tiny, values.t().contiguous().t(), turned, lengths, torch.stack([dt, dt])[1]
    )
    assert done is not None
    assert_same(done[0], expected.state)
    assert same_bits(done[1], expected.tail)


def test_other_arguments_run_in_torch(tiny: SignalForecaster) -> None:
    x, state = torch.ones(2, 3).double(), tiny.initial_state(2)
    for values, lengths, dt in (
        (x.float(), None, None),
        (x, torch.tensor([1.0, 2.0]), None),
        (x, torch.tensor([1, 4]), None),
        (x, torch.tensor([-1, 3]), None),
        (x, torch.tensor([1]), None),
        (x, None, x.float()),
    ):
        assert tiny.native.prefill(tiny, values, state, lengths, dt) is None
    half = {**state, "layers.0.state": state["layers.0.state"].double()}
    short = {**state, "forecast": state["forecast"][:1]}
    for entries in (half, short):
        assert tiny.native.prefill(tiny, x, entries, None, None) is None
        assert tiny.native.roll_out(tiny, entries, 1) is None
    assert tiny.prefill(x, state, dt=x.float()).state.keys() == state.keys()


def test_a_model_in_training_runs_in_torch() -> None:
    model = tiny_forecaster().train()
    x, state = torch.ones(2, 3).double(), model.initial_state(2)
    assert model.native.prefill(model, x, state, None, None) is None
    assert model.native.roll_out(model, state, 1) is None
    assert model.forecast(model.prefill(x, state).state, 40, (0.5,)).isfinite().all()


def test_changed_weights_are_seen() -> None:
    model = tiny_forecaster()
    values, _ = signals()
    old = model.prefill(values, model.initial_state(ROWS)).state["forecast"]
    model.head.bias.requires_grad_(False).add_(1.0)
    new = model.prefill(values, model.initial_state(ROWS)).state
    assert not torch.equal(new["forecast"], old)
    assert_close(
        new, model.prefill_torch(values, model.initial_state(ROWS)).state, torch.arange(ROWS)
    )


def test_no_rows_are_fine(tiny: SignalForecaster) -> None:
    out = tiny.prefill(torch.empty(0, 3).double(), tiny.initial_state(0))
    assert out.tail.shape == (0, 3)
    assert all(len(entry) == 0 for entry in out.state.values())


def test_the_default_model_is_one_that_compiles() -> None:
    model = SignalForecaster(ForecasterConfig()).eval()
    assert NativeModel().usable(model) is not None
