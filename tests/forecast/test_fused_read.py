"""The kernel that reads forecasts off the rows' states, against torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kssm.forecast import SignalForecaster
from kssm.forecast.fused import FusedModel
from kssm.forecast.native.reading import Contest, Sources
from kssm.forecast.testing import tiny_forecaster
from kssm.models import State
from tests.forecast.reading import random_arena

pytest.importorskip("triton")

from kssm.forecast.fused.kernel_read import level_table, read

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DIRECT = 16  # samples that a tiny forecaster's head reaches
LEVELS = (0.001, 0.1, 0.25, 0.4, 0.5, 0.55, 0.8, 0.9, 0.999)
SOME = [(), (4,), (2, 8)]


def kernel(
    model: SignalForecaster,
    state: State,
    horizon: int,
    levels: tuple[float, ...],
    slots: Tensor | None = None,
) -> Tensor:
    """What the kernel reads, up to the head's horizon."""
    factors = model.config.thinning
    prefixes = ["", *(f"every{factor}." for factor in factors)]
    sources: Sources = [(state[f"{p}forecast"], state[f"{p}scaler"]) for p in prefixes]
    contest = Contest(factors, state["clock"], state["contest"]) if factors else None
    return read(sources, horizon, level_table(levels, DEVICE), DIRECT, contest, slots)


@pytest.fixture
def torch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """``forecast`` in plain torch."""
    monkeypatch.setattr(SignalForecaster, "_answer", lambda *_: None)


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forecasters read through the kernel wherever they are."""
    monkeypatch.setattr(FusedModel, "can_read", staticmethod(lambda _: True))


def assert_read_alike(found: Tensor, expected: Tensor) -> None:
    """Equal to 1e-11 of each row's largest number, and numbers at the same places."""
    assert found.shape == expected.shape
    assert torch.equal(found.isnan(), expected.isnan())
    largest = expected.nan_to_num(0.0).abs().amax((1, 2), keepdim=True)
    assert ((found - expected).nan_to_num(0.0).abs() <= 1e-11 * largest).all()


@pytest.mark.usefixtures("torch_only")
@pytest.mark.parametrize("levels", [(0.5,), (0.1, 0.03, 0.9), LEVELS])
@pytest.mark.parametrize("horizon", [1, 7, DIRECT])
@pytest.mark.parametrize("thinning", SOME)
def test_forecasts_are_read_like_by_torch(
    thinning: tuple[int, ...], horizon: int, levels: tuple[float, ...]
) -> None:
    model = tiny_forecaster(thinning=thinning).to(DEVICE)
    state = random_arena(model, 9, seed=horizon, device=DEVICE)
    found = kernel(model, state, horizon, levels)
    assert_read_alike(found, model.forecast(state, horizon, levels))
    assert found[1:3].isnan().all()
    assert found[3:].isfinite().all()


@pytest.mark.usefixtures("torch_only")
def test_forecasts_of_rows_that_have_lived_are_read_like_by_torch() -> None:
    model = tiny_forecaster(thinning=(2, 8)).to(DEVICE)
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(7, 300, generator=generator, dtype=torch.float64).cumsum(1).to(DEVICE)
    values[0, 250:] = torch.nan
    lengths = torch.tensor([300, 299, 180, 40, 9, 1, 0], device=DEVICE)
    state = model.prefill(values, model.initial_state(7), lengths).state
    assert (state["contest"][:, 1, 0, 2] > 0).tolist() == [True] * 3 + [False] * 4
    found = kernel(model, state, DIRECT, LEVELS)
    assert_read_alike(found, model.forecast(state, DIRECT, LEVELS))
    assert found.isnan().flatten(1).all(1).tolist() == [False] * 6 + [True]


@pytest.mark.parametrize("thinning", SOME)
def test_quantiles_do_not_cross(thinning: tuple[int, ...]) -> None:
    model = tiny_forecaster(thinning=thinning).to(DEVICE)
    state = random_arena(model, 9, device=DEVICE)
    state["forecast"][3] = 1.5  # all nine in one place
    levels = tuple(i / 15 for i in range(1, 15))
    found = kernel(model, state, 7, levels)
    assert (found[3:].diff(dim=-1) >= 0).all()


@pytest.mark.parametrize("thinning", SOME)
def test_rows_are_read_where_they_lie(thinning: tuple[int, ...]) -> None:
    model = tiny_forecaster(thinning=thinning).to(DEVICE)
    arena = random_arena(model, 12, device=DEVICE)
    slots = torch.tensor([7, 3, -1, 11, 3, 1, -1, 4, 5], device=DEVICE)
    if thinning:
        arena["clock"][0] = torch.nan  # padding reads what others scribbled there
    for entry in arena.values():
        entry[0] = torch.nan
    before = {name: entry.clone() for name, entry in arena.items()}
    found = kernel(model, arena, 9, LEVELS, slots)
    live = slots >= 0
    copied = {name: entry[slots[live]] for name, entry in arena.items()}
    expected = kernel(model, copied, 9, LEVELS)
    torch.testing.assert_close(found[live], expected, rtol=0, atol=0, equal_nan=True)
    for name, entry in arena.items():
        torch.testing.assert_close(entry, before[name], rtol=0, atol=0, equal_nan=True)


def test_a_number_depends_on_no_other_question() -> None:
    model = tiny_forecaster(thinning=(2, 8)).to(DEVICE)
    arena = random_arena(model, 11, device=DEVICE)
    together = kernel(model, arena, DIRECT, LEVELS)
    slot = torch.tensor([7], device=DEVICE)
    alone = kernel(model, arena, 5, LEVELS[6:7], slot)
    assert torch.equal(alone[0, :, 0], together[7, :5, 6])
    assert kernel(model, arena, 5, LEVELS, slot[:0]).shape == (0, 5, len(LEVELS))


@pytest.mark.parametrize("thinning", SOME)
@pytest.mark.usefixtures("fused")
def test_forecasters_read_their_rows_through_the_kernel(thinning: tuple[int, ...]) -> None:
    model = tiny_forecaster(thinning=thinning).to(DEVICE)
    arena = random_arena(model, 9, device=DEVICE)
    slots = torch.tensor([5, 8, -1, 3], device=DEVICE)
    found = model.forecast_rows(arena, slots, DIRECT, LEVELS)
    assert found is not None
    assert torch.equal(found[[0, 1, 3]], kernel(model, arena, DIRECT, LEVELS)[[5, 8, 3]])
    assert torch.equal(found, model.forecast_rows(arena, slots, DIRECT, LEVELS))
    assert model.forecast_rows(arena, slots, DIRECT + 1, LEVELS) is None


@pytest.mark.parametrize("thinning", SOME)
def test_roll_outs_are_read_like_by_torch(
    thinning: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_forecaster(thinning=thinning).to(DEVICE)
    state = random_arena(model, 5, device=DEVICE)
    found = []
    for through_kernel in (True, False):
        monkeypatch.setattr(FusedModel, "can_read", staticmethod(lambda _, on=through_kernel: on))
        if not through_kernel:
            monkeypatch.setattr(SignalForecaster, "_answer", lambda *_: None)
        found.append(model.forecast(state, 2 * DIRECT + 5, (0.1, 0.7)))
    assert_read_alike(*found)


def test_rows_on_a_cpu_are_left_to_other_code() -> None:
    model = tiny_forecaster()
    state = model.initial_state(2)
    sources = [(state["forecast"], state["scaler"])]
    assert FusedModel().read(sources, 3, (0.5,), DIRECT) is None
