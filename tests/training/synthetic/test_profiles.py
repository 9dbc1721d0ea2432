"""Cycle shapes and their look-up."""

from __future__ import annotations

import torch

from kssm.training.synthetic import profiles
from kssm.training.synthetic.sampler import Sampler
from kssm.training.synthetic.seasons import plain_cycle, season, weekly_table
from tests.training.synthetic.spectrum import power_spectrum


def sampler(rows: int = 64, length: int = 512, seed: int = 0) -> Sampler:
    return Sampler(rows, length, False, torch.Generator().manual_seed(seed), torch.device("cpu"))


def test_reading_at_the_grid_returns_the_table() -> None:
    table = torch.randn(3, profiles.GRID, generator=torch.Generator().manual_seed(0))
    phase = (torch.arange(profiles.GRID) / profiles.GRID).expand(3, -1)
    torch.testing.assert_close(profiles.read_profile(table, phase + 4.0), table)
    assert torch.equal(profiles.read_steps(table, phase), table)


def test_reading_between_the_grid_interpolates_and_wraps() -> None:
    table = torch.zeros(1, profiles.GRID)
    table[0, 0] = 1.0
    phase = torch.tensor([[(profiles.GRID - 0.5) / profiles.GRID]])
    torch.testing.assert_close(profiles.read_profile(table, phase), torch.tensor([[0.5]]))


def test_variants_choose_the_table() -> None:
    table = torch.stack([torch.zeros(2, profiles.GRID), torch.ones(2, profiles.GRID)], dim=1)
    variant = torch.tensor([[0, 1, 1], [1, 0, 1]])
    found = profiles.read_profile(table, torch.full((2, 3), 0.3), variant)
    assert torch.equal(found, variant.float())


def test_harmonics_beyond_the_sampling_limit_are_removed() -> None:
    table = profiles.harmonic_profile(sampler(200), torch.full((200, 1), 7.0))
    spectrum = power_spectrum(table)
    assert spectrum[:, 4:].amax() < 1e-3 * spectrum[:, 1:4].amax(1).median()
    torch.testing.assert_close(table.abs().amax(1), torch.ones(200), atol=1e-3, rtol=0.0)


def test_plain_cycle_has_the_period_asked_for() -> None:
    period = torch.tensor([[8.0], [16.0], [32.0], [64.0], [128.0]]).repeat(20, 1)
    rows = sampler(100, 1024)
    x = plain_cycle(rows, rows.time() / period, period, harmonics=1)
    dominant = power_spectrum(x)[:, 1:].argmax(1) + 1
    assert torch.equal(dominant, (1024 / period).long().squeeze(1))


def test_plain_cycle_repeats() -> None:
    period = torch.full((30, 1), 24.0)
    rows = sampler(30, 240)
    x = plain_cycle(rows, rows.time() / period, period, harmonics=7)
    torch.testing.assert_close(x[:, :24], x[:, 48:72], atol=2e-3, rtol=0.0)


def test_season_has_its_power_at_multiples_of_its_periods() -> None:
    periods = torch.tensor([[32.0, 128.0, 1024.0]]).repeat(200, 1)
    spectrum = power_spectrum(season(sampler(200, 1024), periods))[:, 1:]
    share = spectrum[:, 31::32].sum(1) / spectrum.sum(1)
    assert share.median() > 0.35  # of the main cycle, beside the others and the modulations
    on_cycles = spectrum[:, 0] + spectrum[:, 7::8].sum(1)
    assert (on_cycles / spectrum.sum(1)).median() > 0.6


def test_shapes_keep_their_promises() -> None:
    rows = sampler(200)
    assert profiles.daylight_profile(rows).amin() == 0.0
    assert profiles.bump_profile(rows).amax() <= 2.0
    assert set(profiles.square_profile(rows).unique().tolist()) == {-1.0, 1.0}
    assert profiles.ramp_profile(rows).abs().amax() <= 1.0 + 1e-5
    plateau = profiles.plateau_profile(rows)
    assert plateau.abs().amax() <= 1.0
    steps = profiles.staircase_profile(rows)
    assert max(len(row.unique()) for row in steps) <= 24
    assert profiles.commuter_profile(rows).amin() >= 0.0
    assert profiles.knot_profile(rows).isfinite().all()


def test_weekends_differ_from_working_days() -> None:
    table = weekly_table(sampler(2000))
    assert table[:, 5:].mean() < -0.05
    assert table[:, :5].mean().abs() < 0.03
