"""The lever `season`: a local basis in time, told units, and forecasts that go on from a state."""

from __future__ import annotations

import math

import pytest
import torch

from experiments.ablations import season, season_training
from experiments.ablations.season import SMALLEST_UNIT, SeasonForecaster, hats, unit_of
from kssm.forecast import ForecasterConfig
from kssm.forecast.testing import tiny_forecaster
from kssm.training.loss import Spacing, tokenise

HORIZON = 16
EARLY = len(season.EARLY)


def seasonal_forecaster() -> SeasonForecaster:
    plain = tiny_forecaster().config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SeasonForecaster(
            ForecasterConfig(plain.backbone, head_horizon=HORIZON, head_hidden=32)
        ).eval()


def test_basis_interpolates_between_knots() -> None:
    basis = hats(torch.tensor([0.01, 1 / 16, 0.75, 1.0, 7.25, 16.0, 30.0]), HORIZON)
    assert torch.allclose(basis.sum(-1), torch.ones(7))
    knots = torch.tensor([*season.EARLY, *range(1, HORIZON + 1)])
    expected = torch.tensor([1 / 16, 1 / 16, 0.75, 1.0, 7.25, 16.0, 16.0])
    assert torch.allclose(basis @ knots, expected)
    assert ((basis > 0).sum(-1) <= 2).all()


def test_at_whole_intervals_the_head_is_the_usual_one() -> None:
    model = seasonal_forecaster()
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(3, 5, 32, generator=generator)
    last = torch.randn(3, 5, generator=generator)
    basis = hats(torch.arange(1, HORIZON + 1), HORIZON).expand(3, -1, -1)
    usual = model.head(hidden, last)[..., EARLY:, :]
    assert torch.allclose(model.head.at(hidden, last, basis), usual, atol=1e-5)


def test_quantiles_between_knots_do_not_cross() -> None:
    model = seasonal_forecaster()
    hidden = 5.0 * torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(2))
    basis = hats(torch.linspace(0.05, 16.0, 40), HORIZON).expand(2, -1, -1)
    quantiles = model.head.at(hidden, torch.zeros(2, 3), basis)
    assert quantiles.shape == (2, 3, 40, 9)
    assert (quantiles.diff(dim=-1) > 0).all()


@pytest.mark.parametrize("period", [7.0, 24.0, 48.0, 288.0])
def test_rhythms_are_found_under_noise_and_trend(period: float) -> None:
    generator = torch.Generator().manual_seed(3)
    time = torch.arange(2048.0)
    wave = torch.sin(2 * math.pi * time / period)
    x = 1e6 + wave + 0.002 * time + 0.3 * torch.randn(4, 2048, generator=generator)
    x[1, 100:200] = torch.nan
    found = season_training.dominant_period(x)
    assert torch.allclose(found, torch.full((4,), period, dtype=torch.float64), rtol=0.08)


def test_units_follow_the_season() -> None:
    units = unit_of(torch.tensor([1.0, 24.0, 48.0, 288.0, 1e5]))
    assert torch.allclose(units, torch.tensor([1.0, 1.0, 0.5, 1 / 12, SMALLEST_UNIT]))
    wave = torch.sin(2 * math.pi * torch.arange(1024.0) / 96).expand(400, -1)
    told = season_training.told_units(wave, torch.Generator().manual_seed(4))
    near = (told / 0.25).log().abs() < season_training.JITTER + 0.08
    assert 0.55 < near.double().mean() < 0.8
    assert 0.15 < (told == 1.0).double().mean() < 0.35


def test_targets_spread_over_the_reach() -> None:
    unit = torch.tensor([1.0, 0.25, SMALLEST_UNIT])
    ahead = season_training.targets_ahead(unit, 64, torch.Generator().manual_seed(5))
    assert ahead[0].tolist() == list(range(1, 65))
    assert ahead[1:, :16].tolist() == [list(range(1, 17))] * 2
    assert (ahead.diff(dim=1) > 0).all()
    assert (ahead[:, -1] * unit <= 64.0).all()
    assert ahead[2, -1] > 950


def test_tokens_in_a_unit_of_their_own() -> None:
    x = torch.arange(80.0).expand(2, -1).sin()
    spacing = Spacing(torch.tensor([0.5, 1.0]), torch.tensor([[1, 30], [2, 4]]), 32)
    seen = torch.ones_like(x, dtype=torch.bool)
    tokens = tokenise(x, seen, 2, reads=slice(0, None, 1), spacing=spacing)
    usual = tokenise(x, seen, 4, reads=slice(0, None, 1))
    assert tokens.dt is not None
    assert tokens.dt[:, 5].tolist() == [0.5, 1.0]
    assert torch.equal(tokens.targets[1, :76], usual.targets[1, :76][:, [1, 3]])
    assert tokens.targets[0, 50:, 1].isnan().all()
    assert tokens.targets[0, 49, 1].isfinite()


def test_forecasts_go_on_from_a_state() -> None:
    model = seasonal_forecaster()
    x = torch.arange(60.0).double().sin().expand(2, -1).clone()
    lengths = torch.tensor([60, 47])
    whole, state = model.read_on(x, model.initial_state(2), lengths, 0.5)
    _, first = model.read_on(x[:, :20], model.initial_state(2), None, 0.5)
    hidden, split = model.read_on(x[:, 20:], first, lengths - 20, 0.5)
    assert torch.allclose(hidden, whole, atol=1e-5)
    forecast = model.forecast_spaced(whole, state, 40, 0.5)
    assert forecast.shape == (2, 40, 9)
    assert torch.allclose(model.forecast_spaced(hidden, split, 40, 0.5), forecast, atol=1e-4)
    assert (forecast.diff(dim=-1) >= 0).all()
