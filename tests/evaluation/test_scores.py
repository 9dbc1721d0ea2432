"""Scores and the seasonal naive forecast against their plain formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from kssm.evaluation.scores import Scores, geometric_mean, quantile_loss, score, seasonal_naive
from tests.evaluation.support import toy_task


def test_scores_match_their_definitions() -> None:
    toy = toy_task()
    truth = toy.targets()
    known = np.isfinite(truth)
    quantiles = np.repeat(np.nan_to_num(truth)[:, None] + 0.5, 9, axis=1).astype(np.float32)
    quantiles[:, 0] -= 1.0
    scores = score(toy, quantiles)
    levels = np.arange(1, 10) / 10
    expected = 0.5 * (2 * (1 - levels[1:])).sum() + 0.5 * 2 * levels[0]
    total = expected / 9 * known.sum() / np.abs(truth[known]).sum()
    assert scores.crps == pytest.approx(total, rel=1e-5)
    errors = [np.nanmean(np.abs(c[7:] - c[:-7])) for c in toy.contexts()]
    mase = (0.5 / np.repeat(errors, known.sum(1))).mean()
    assert scores.mase == pytest.approx(mase, rel=1e-5)


def test_unknown_targets_cost_nothing() -> None:
    truth = np.array([[1.0, np.nan]])
    loss = quantile_loss(truth, np.zeros((1, 9, 2), dtype=np.float32))
    assert loss[0, 1] == 0.0
    assert loss[0, 0] == pytest.approx(1.0)


def test_windows_without_a_seasonal_error_do_not_count() -> None:
    flat = replace(toy_task(), values=np.ones(70, dtype=np.float32))
    scores = score(flat, np.ones((4, 9, 5), dtype=np.float32))
    assert math.isnan(scores.mase)
    assert scores.crps == 0.0


def test_the_seasonal_naive_repeats_the_last_season() -> None:
    season = np.array([3.0, 1.0, 4.0], dtype=np.float32)
    values = np.tile(season, 10)
    task = replace(
        toy_task(),
        prediction_length=4,
        windows=1,
        season=3,
        values=values,
        offsets=np.array([0, 30]),
    )
    naive = seasonal_naive(task)
    assert np.array_equal(naive[0, 4], np.roll(season, 1)[np.arange(4) % 3])
    assert np.allclose(naive, naive[:, 4:5])


def test_its_spread_grows_with_the_seasons_ahead() -> None:
    toy = toy_task()
    naive = seasonal_naive(replace(toy, season=2))
    spread = naive[0, 8] - naive[0, 4]
    assert spread[2] == pytest.approx(spread[0] * math.sqrt(2), rel=1e-5)
    past = toy.contexts()[0].astype(np.float64)
    sigma = math.sqrt(np.mean((past[2:] - past[:-2]) ** 2))
    assert spread[0] == pytest.approx(1.2815515655 * sigma, rel=1e-5)


def test_a_missing_sample_repeats_the_one_before() -> None:
    toy = toy_task()
    gap = toy.values[20:30].copy()
    gap[[0, 9]] = np.nan
    task = replace(
        toy,
        prediction_length=1,
        windows=1,
        season=1,
        values=np.append(gap, [0.0]).astype(np.float32),
        offsets=np.array([0, 11]),
    )
    assert seasonal_naive(task)[0, 4, 0] == gap[8]
    assert np.array_equal(
        seasonal_naive(replace(task, values=task.values * np.nan)), np.zeros((1, 9, 1))
    )


def test_relative_scores_and_their_mean() -> None:
    relative = Scores(1.0, 3.0).relative_to(Scores(2.0, 0.0))
    assert relative.mase == 0.5
    assert math.isnan(relative.crps)
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
