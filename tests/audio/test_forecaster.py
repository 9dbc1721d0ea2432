"""The runtime's contract on sound: cut anywhere, alone or together, with and without gaps."""

from __future__ import annotations

import pytest
import torch

from kssm.audio import AudioForecaster
from kssm.errors import InvalidInputError
from kssm.models.base import State
from tests.audio.support import TINY, sound, tiny_audio

LEVELS = (0.1, 0.5, 0.9)


@pytest.fixture(scope="module")
def model() -> AudioForecaster:
    return tiny_audio()


def pieces(model: AudioForecaster, x: torch.Tensor, cuts: list[int]) -> tuple[State, torch.Tensor]:
    state, tails = model.initial_state(len(x)), []
    for first, last in zip([0, *cuts], [*cuts, x.shape[1]], strict=True):
        output = model.prefill(x[:, first:last], state)
        state = output.state
        tails.append(output.tail)
    return state, torch.cat(tails, 1)


def assert_same(got: State, want: State) -> None:
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], atol=2e-5, rtol=2e-5, msg=name)


def gaps(x: torch.Tensor) -> torch.Tensor:
    """A lost patch, a long gap and a single sample."""
    holed = x.clone()
    holed[0, 40:48] = torch.nan
    holed[-1, 61:110] = torch.nan
    holed[:, 121] = torch.nan
    return holed


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("cuts", [[1], [8, 16], [3, 4, 40, 41, 67, 99], list(range(1, 150))])
def test_prefill_may_be_cut_anywhere(model: AudioForecaster, cuts: list[int], lost: bool) -> None:
    x = sound(150, 2)
    x = gaps(x) if lost else x
    whole = model.prefill(x, model.initial_state(2))
    state, tail = pieces(model, x, cuts)
    assert_same(state, whole.state)
    torch.testing.assert_close(tail, whole.tail, atol=1e-4, rtol=1e-4, equal_nan=True)


def test_long_sounds_are_taken_in_pieces(
    model: AudioForecaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, lengths = sound(300, 2), torch.tensor([300, 170])
    whole = model.prefill(x, model.initial_state(2), lengths)
    monkeypatch.setattr("kssm.audio.forecaster._MOST", 64)
    pieces = model.prefill(x, model.initial_state(2), lengths)
    assert_same(pieces.state, whole.state)
    torch.testing.assert_close(pieces.tail, whole.tail, atol=1e-4, rtol=1e-4, equal_nan=True)


def test_ragged_rows_are_as_alone(model: AudioForecaster) -> None:
    x, lengths = gaps(sound(130, 3)), torch.tensor([130, 0, 77])
    together = model.prefill(x, model.initial_state(3), lengths)
    assert together.tail[2, 77:].isnan().all()
    for row, length in enumerate(lengths.tolist()):
        state = model.initial_state(1)
        if length:
            state = model.prefill(x[row : row + 1, :length], state).state
        assert_same({k: v[row : row + 1] for k, v in together.state.items()}, state)


def test_steps_are_prefill_and_leave_others_alone(model: AudioForecaster) -> None:
    x = gaps(sound(130, 2))
    arena = model.initial_state(5)
    for entry in arena.values():
        entry[2] = 7.0
    slots = torch.tensor([4, -1, 1])
    tails = [
        model.step_(torch.stack([x[0, t], torch.tensor(9.0), x[1, t]]).double(), arena, slots).tail
        for t in range(130)
    ]
    whole = model.prefill(x, model.initial_state(2))
    assert_same({k: v[[4, 1]] for k, v in arena.items()}, whole.state)
    assert all((entry[2] == 7.0).all() and not entry[3].any() for entry in arena.values())
    got = torch.stack(tails, 1)[[0, 2]]
    torch.testing.assert_close(got, whole.tail, atol=1e-4, rtol=1e-4, equal_nan=True)


def test_nothing_of_a_sample_is_in_its_own_forecast(model: AudioForecaster) -> None:
    x = sound(150)
    other = x.clone()
    other[0, 99:] = -3.0
    tails = [model.prefill(v, model.initial_state(1)).tail[0] for v in (x, other)]
    torch.testing.assert_close(tails[0][:99], tails[1][:99], equal_nan=True)
    state = model.prefill(x[:, :99], model.initial_state(1)).state
    low, high = model.forecast(state, 1, (0.25, 0.75))[0, 0].tolist()
    median = model.forecast(state, 1, (0.5,))[0, 0]
    state_tail = model.prefill(torch.tensor([[high]]), state).tail[0, 0]
    assert low < float(median) < high
    assert float(state_tail) == pytest.approx(0.5, abs=1e-3)


def test_loudness_is_free(model: AudioForecaster) -> None:
    x = gaps(sound(150, 2))
    plain, loud = (model.prefill(v, model.initial_state(2)) for v in (x, 1e4 * x))
    torch.testing.assert_close(plain.tail, loud.tail, atol=1e-3, rtol=1e-3, equal_nan=True)
    ahead = [model.forecast(o.state, 20, LEVELS) for o in (plain, loud)]
    torch.testing.assert_close(1e4 * ahead[0], ahead[1], atol=1.0, rtol=1e-3)


@pytest.mark.parametrize("horizon", [1, 24, 25, 60])
def test_forecasts_are_ordered_and_grow(model: AudioForecaster, horizon: int) -> None:
    state = model.prefill(sound(101, 2), model.initial_state(2)).state
    before = {name: entry.clone() for name, entry in state.items()}
    entries = {name: state[name] for name in model.forecast_entries(horizon)}
    out = model.forecast(entries, horizon, LEVELS)
    assert out.shape == (2, horizon, 3)
    assert (out.diff(dim=-1) > 0).all()
    torch.testing.assert_close(
        out[:, :10], model.forecast(state, 60, LEVELS)[:, : min(10, horizon)]
    )
    assert_same(state, before)


def test_a_gap_is_filled_by_what_was_forecast(model: AudioForecaster) -> None:
    state = model.prefill(sound(103), model.initial_state(1)).state
    filling = model.path(state, 50)[:, 0]
    after = model.prefill(torch.full((1, 50), torch.nan).double(), state).state
    size = TINY.history // 2
    end = int(after["clock"][0, 0])
    heard = torch.cat([after["history"], after["patch"][:, :end]], 1)
    torch.testing.assert_close(heard[:, -size:], filling[:, -size:])


def test_rows_that_heard_nothing_have_no_forecast(model: AudioForecaster) -> None:
    state = model.initial_state(1)
    silent = model.prefill(torch.full((1, 20), torch.nan).double(), state)
    assert model.forecast(silent.state, 5, LEVELS).isnan().all()
    assert silent.tail.isnan().all()
    assert all(entry.isfinite().all() for entry in silent.state.values())
    heard = model.prefill(torch.zeros(1, 18).double(), silent.state)
    assert heard.tail.isnan().tolist() == [[True] * 16 + [False] * 2]
    assert model.forecast(heard.state, 5, LEVELS).isfinite().all()


def test_extreme_samples_stay_finite(model: AudioForecaster) -> None:
    x = sound(200)
    x[0, 60:70] = 1e14
    x[0, 90] = 1e25
    x[0, 120:] = 0.0
    state = model.prefill(x, model.initial_state(1)).state
    assert all(entry.isfinite().all() for entry in state.values())
    assert model.forecast(state, 30, LEVELS).isfinite().all()


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda m: m.prefill(torch.zeros(2, 0), m.initial_state(2)), "wrong_shape"),
        (lambda m: m.prefill(torch.zeros(3), m.initial_state(3)), "wrong_shape"),
        (lambda m: m.prefill(torch.zeros(3, 4), m.initial_state(2)), "wrong_shape"),
        (lambda m: m.forecast(m.initial_state(1), 0, LEVELS), "invalid_horizon"),
        (lambda m: m.forecast(m.initial_state(1), 3, (1.0,)), "invalid_quantiles"),
    ],
)
def test_bad_input_has_a_code(model: AudioForecaster, call, code: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        call(model)
    assert caught.value.code == code
