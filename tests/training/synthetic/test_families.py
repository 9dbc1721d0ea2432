"""Every family: the common contract, then what makes it itself."""

from __future__ import annotations

import pytest
import torch

from kssm.training.synthetic import (
    FAMILIES,
    Sampler,
    bounded,
    calendars,
    causal,
    counts,
    growth,
    oscillations,
    pulses,
    stochastic,
    structural,
    trends,
)
from kssm.training.synthetic.periods import draw_periods
from kssm.training.synthetic.signals import standardise
from tests.training.synthetic.spectrum import power_spectrum


def sampler(rows: int = 48, length: int = 600, seed: int = 0, short: bool = False) -> Sampler:
    generator = torch.Generator().manual_seed(seed)
    return Sampler(rows, length, short, generator, torch.device("cpu"))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("length", "short"), [(1000, False), (256, True), (33, True)])
def test_family_contract(name: str, length: int, short: bool) -> None:
    x = FAMILIES[name](sampler(40, length, seed=1, short=short))
    assert x.shape == (40, length)
    assert x.dtype == torch.float32
    assert x.isfinite().all()
    assert (x.std(1) > 0.0).float().mean() > 0.8
    again = FAMILIES[name](sampler(40, length, seed=1, short=short))
    assert torch.equal(x, again)
    other = FAMILIES[name](sampler(40, length, seed=2, short=short))
    assert not torch.equal(x, other)


@pytest.mark.parametrize("name", FAMILIES)
def test_one_row_is_enough(name: str) -> None:
    x = FAMILIES[name](sampler(1, 64))
    assert x.shape == (1, 64)
    assert x.isfinite().all()


def test_calendar_power_lies_at_multiples_of_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calendars, "draw_day", lambda s: torch.full((s.rows, 1), 288.0))
    x = calendars.calendar(sampler(100, 2016))
    spectrum = power_spectrum(standardise(x))[:, 1:]
    daily = spectrum[:, 6::7].sum(1) / spectrum.sum(1)
    assert daily.median() > 0.5


def test_calendar_days_are_mostly_long() -> None:
    days = calendars.draw_day(sampler(2000))
    assert set(days.flatten().tolist()) == {day for day, _ in calendars.DAYS}
    assert (days >= 96.0).float().mean() > 0.65
    short = calendars.draw_day(sampler(500, short=True))
    assert short.max() <= 52.0


def test_day_kinds_repeat_weekly_but_for_holidays() -> None:
    rows = sampler(300, 70)
    kinds = calendars.day_kinds(rows, rows.time().expand(300, -1))
    assert set(kinds.unique().tolist()) == {0, 1, 2}
    same = (kinds[:, :7] == kinds[:, 7:14]).float().mean()
    assert same > 0.97
    working_week = (kinds[:, :5] == 0).all(1) & (kinds[:, 5:7] > 0).all(1)
    assert 0.3 < working_week.float().mean() < 0.7


def test_day_profiles_meet_at_midnight() -> None:
    table = calendars.day_profiles(sampler(50), torch.full((50, 1), 96.0))
    torch.testing.assert_close(table[:, 1, 0], table[:, 0, 0])
    torch.testing.assert_close(table[:, 2, 0], table[:, 0, 0])


def test_limits_hold() -> None:
    rows = sampler(100)
    x = 3.0 * rows.normal(600)
    soft = bounded.soft_limits(rows, x)
    assert soft.min() >= 0.0
    assert soft.max() <= 2.0
    hard = bounded.hard_limits(rows, x)
    assert (hard.amax(1) - hard.amin(1)).max() <= 2.0 + 1e-5
    assert bounded.reflected_walk(rows).abs().max() <= 1.0
    one_sided = bounded.hard_ceiling(rows, x)
    assert ((one_sided == one_sided.amax(1, keepdim=True)).sum(1) > 20).float().mean() > 0.5


def test_relaxation_responds_without_jumps() -> None:
    x = bounded.relaxation(sampler(60, 1024))
    torch.testing.assert_close(x.abs().amax(1), torch.ones(60), atol=1e-3, rtol=0.0)
    start, rest = x[:, :128].abs().amax(1), x[:, 128:].abs().amax(1)
    assert (rest > 0.5 * start).float().mean() > 0.9  # no transient dwarfs what follows


def test_soft_ceiling_approaches_the_identity_far_away() -> None:
    ramp = torch.linspace(-50.0, 50.0, 600).expand(40, -1)
    slope = bounded.soft_ceiling(sampler(40), ramp).diff(dim=1) / ramp.diff(dim=1)
    free = torch.maximum(slope[:, 0], slope[:, -1])
    cut = torch.minimum(slope[:, 0], slope[:, -1])
    torch.testing.assert_close(free, torch.ones(40), atol=1e-3, rtol=0.0)
    torch.testing.assert_close(cut, torch.zeros(40), atol=1e-3, rtol=0.0)


def test_counts_are_whole_and_not_negative() -> None:
    x = counts.counts(sampler(100))
    assert (x >= 0.0).all()
    assert torch.equal(x, x.round())
    assert (x == 0.0).float().mean() > 0.1


def test_count_rate_has_the_level_asked_for() -> None:
    rate = counts.count_rate(sampler(300))
    assert (rate >= 0.0).all()
    assert 0.02 < rate.mean(1).quantile(0.1) < rate.mean(1).quantile(0.9) < 400.0


def test_intermittent_demand_is_mostly_zero() -> None:
    x = counts.renewal_demand(sampler(200))
    assert (x >= 0.0).all()
    assert torch.equal(x, x.round())
    assert 0.6 < (x == 0.0).float().mean() < 0.95
    assert (counts.intermittent(sampler(50)) >= 0.0).all()


@pytest.mark.parametrize(
    "wave", [pulses.pulse_train, pulses.saw_tooth, pulses.triangle_wave, pulses.switched_levels]
)
def test_waves_have_the_period_drawn(wave, monkeypatch: pytest.MonkeyPatch) -> None:
    periods = torch.tensor([[20.0, 1.0, 1.0]])
    monkeypatch.setattr(pulses, "draw_periods", lambda s: periods.expand(s.rows, -1))
    spectrum = power_spectrum(wave(sampler(40, 600)))[:, 1:]
    on_harmonics = spectrum[:, 29::30].sum(1) / spectrum.sum(1)
    assert on_harmonics.median() > 0.8


def test_step_sequence_has_few_levels() -> None:
    x = pulses.step_sequence(sampler(50))
    assert max(len(row.unique()) for row in x) <= 11


def test_growth_curves_grow() -> None:
    rows = sampler(60)
    for curve in (growth.logistic, growth.gompertz, growth.power, growth.accumulated):
        x = curve(rows)
        assert (x.diff(dim=1) >= -1e-6).all()
        assert x.amax() <= 1.1
    assert (growth.compound(rows) > 0.0).all()


def test_chirps_change_their_frequency() -> None:
    x = oscillations.chirp(sampler(200, 1024))
    crossings = (x[:, 1:].sign() != x[:, :-1].sign()).float()
    early, late = crossings[:, :256].sum(1), crossings[:, -256:].sum(1)
    busy = (early + late) > 20.0
    assert ((early - late).abs() > 0.2 * (early + late))[busy].float().mean() > 0.15


def test_ringing_decays_until_it_restarts() -> None:
    x = oscillations.ringing(sampler(100, 1024))
    assert x.abs().max() <= 1.0 + 1e-5


def test_regimes_and_walks() -> None:
    walk = stochastic.volatile_walk(sampler(100))
    torch.testing.assert_close(walk.std(1), torch.full((100,), 3.0), atol=0.02, rtol=0.0)
    assert (stochastic.geometric_walk(sampler(50)) > 0.0).all()
    assert stochastic.regime_switching(sampler(50)).isfinite().all()


def test_causal_activations_and_lags() -> None:
    rows = sampler(400, 64)
    ramp = torch.arange(64.0).expand(400, -1)
    lag = (ramp - causal.lagged(rows, ramp))[:, -1]
    assert lag.min() == 0.0
    assert lag.max() == 4.0
    x = causal.activation(rows, ramp - 32.0)
    assert x.isfinite().all()
    assert 0.28 < (x == ramp - 32.0).all(1).float().mean() < 0.42


def test_structural_forms() -> None:
    rows = sampler(50)
    season, drift, noise = rows.normal(600), rows.normal(600), 0.1 * rows.normal(600)
    torch.testing.assert_close(
        structural.additive(rows, season, drift, noise), season + drift + noise
    )
    assert (structural.exponential(rows, season, drift, noise) > 0.0).all()
    rectified = structural.rectified(rows, season, drift, torch.zeros_like(noise))
    assert (rectified == 0.0).float().mean() > 0.2
    assert structural.multiplicative(rows, season, drift, noise).isfinite().all()
    quiet = structural.heteroscedastic(rows, 0.0 * season, drift, noise) - drift
    torch.testing.assert_close(quiet, 0.1 * noise, atol=1e-5, rtol=0.0)


def test_trends_have_their_shape() -> None:
    rows = sampler(60)
    line = trends.linear_trend(rows)
    torch.testing.assert_close(line[:, -1] - line[:, 0], torch.full((60,), 3.0))
    bends = trends.piecewise_linear_trend(rows).double().diff(dim=1).diff(dim=1).abs() > 1e-3
    assert bends.sum(1).float().mean() < 30.0
    jumps = trends.level_shifts(rows).diff(dim=1) != 0.0
    assert 1.0 < jumps.sum(1).float().mean() < 15.0
    assert trends.temporary_levels(rows).unique().tolist() == [0.0, 2.0]
    curve = trends.exponential_trend(rows)
    span = (curve[:, -1] - curve[:, 0]).abs()
    torch.testing.assert_close(span, torch.full((60,), 3.0), atol=1e-3, rtol=0.0)


def test_periods_include_the_calendar_and_random_ones() -> None:
    main = draw_periods(sampler(3000))[:, 0]
    assert (main == 288.0).float().mean() > 0.07
    known = torch.tensor([row[0] for row in calendars.DAYS])
    assert (~torch.isin(main, known)).float().mean() > 0.2
    assert main.min() >= 3.0
    short = draw_periods(sampler(3000, short=True))[:, 0]
    assert (short == 12.0).float().mean() > 0.15
