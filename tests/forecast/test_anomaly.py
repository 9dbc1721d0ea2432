"""Scores, calibrated probabilities and sustained surprise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kssm.forecast import Forecaster, scaler
from kssm.forecast.anomaly import (
    AnomalyMonitor,
    advance_numpy_,
    fresh_state,
    level_tail,
    score_from_tail,
    watch,
)
from kssm.forecast.distribution import normal_tail
from kssm.forecast.testing import tiny_forecaster

EXPECTED = 2.0 / math.log(10.0)


def normal_tails(widths: NDArray[np.float64]) -> NDArray[np.float64]:
    """Tails under the normal assumption of samples so many outer widths from the median."""
    return normal_tail(torch.from_numpy(1.2815515655446004 * widths)).numpy()


def test_scores_are_capped_logarithms() -> None:
    scores = score_from_tail(np.array([1.0, 0.01, 0.0, np.nan]))
    assert scores[:3].tolist() == pytest.approx([0.0, 2.0, 12.0])
    assert np.isnan(scores[3])


def test_level_tails_are_those_of_the_normal_distribution() -> None:
    stats = torch.zeros(3, 7, dtype=torch.float64)
    stats[:, 0] = torch.tensor([100.0, 100.0, scaler.WARM_UP - 1])
    stats[:, 1], stats[:, 2] = 5.0, 4.0
    values = torch.tensor([9.0, torch.nan, 9.0], dtype=torch.float64)
    tails = level_tail(values, stats)
    assert float(tails[0]) == pytest.approx(0.0455, abs=1e-4)
    assert tails[1:].isnan().all()


@pytest.mark.parametrize("index", [1.7, 2.5, 4.0])
def test_probabilities_are_calibrated_whatever_the_tail(index: float) -> None:
    """Distances with a power tail: r beyond the outer quantile with probability 0.2 r^-index."""
    rng = np.random.default_rng(7)
    share = rng.uniform(size=60_000)
    widths = np.where(share < 0.2, (share / 0.2) ** (-1.0 / index), 1.0 - share)
    tails = normal_tails(widths).reshape(-1, 10)
    found = AnomalyMonitor(10).watch(rng.normal(size=tails.shape), tails).probability
    settled = found[1000:]
    for level in (0.1, 0.01, 0.003):
        assert (settled < level).mean() == pytest.approx(level, rel=0.25)


def test_inside_the_outer_quantiles_nothing_changes() -> None:
    alarm = AnomalyMonitor(2).update(np.zeros(2), np.array([0.21, 0.9]))
    assert alarm.probability.tolist() == [0.21, 0.9]


def hostile(samples: int, channels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Samples and tails, some of them missing or extreme."""
    rng = np.random.default_rng(3)
    values = rng.standard_t(2, size=(samples, channels)).cumsum(axis=0)
    values[rng.random(values.shape) < 0.1] = np.nan
    tails = rng.uniform(size=values.shape) ** 3
    tails[20:60, 0] = 10.0 ** rng.uniform(-305, 0, 40)
    tails[60:64, 0] = 0.0, 1e-320, 1.0, 0.2
    tails[np.isnan(values) | (rng.random(values.shape) < 0.05)] = np.nan
    return values, tails


def test_compiled_code_and_numpy_agree() -> None:
    values, tails = hostile(800, 4)
    monitor, state = AnomalyMonitor(4), fresh_state(4)
    expected = advance_numpy_(state, values, tails)
    for got, wanted in zip(monitor.watch(values, tails), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-11)
    np.testing.assert_allclose(monitor.state, state, rtol=1e-11)


def test_missing_samples_leave_the_state_alone() -> None:
    monitor = AnomalyMonitor(2)
    monitor.update(np.array([3.0, 4.0]), np.array([0.001, 0.3]))
    before = monitor.state.copy()
    alarm = monitor.update(np.full(2, np.nan), np.full(2, np.nan))
    gap = before[:, 6] + 1.0
    assert np.array_equal(monitor.state[:, 6], gap)
    assert np.array_equal(np.delete(monitor.state, 6, 1), np.delete(before, 6, 1))
    assert np.isnan(alarm.probability).all()
    assert np.isnan(alarm.surprise).all()


def test_however_a_row_is_cut_the_bits_are_the_same() -> None:
    values, tails = hostile(80, 3)
    whole, cut = AnomalyMonitor(3), AnomalyMonitor(3)
    expected = whole.watch(values, tails)
    first = cut.watch(values[:17], tails[:17])
    cut = AnomalyMonitor(3, cut.state)
    rest = [cut.update(v, t) for v, t in zip(values[17:], tails[17:], strict=True)]
    for name in ("probability", "surprise"):
        parts = [getattr(first, name), *(getattr(alarm, name)[None] for alarm in rest)]
        np.testing.assert_array_equal(np.concatenate(parts), getattr(expected, name))
    np.testing.assert_array_equal(cut.state, whole.state)


def test_surprise_rests_at_its_expectation_and_rises_with_a_shift() -> None:
    rng = np.random.default_rng(5)
    monitor = AnomalyMonitor(1)
    calm = monitor.watch(rng.normal(size=(6000, 1)), rng.uniform(size=(6000, 1))).surprise[8:]
    assert np.mean(calm) == pytest.approx(EXPECTED, rel=0.05)
    shifted = monitor.watch(rng.normal(4.0, 0.1, size=(32, 1)), np.full((32, 1), 0.05))
    assert shifted.surprise[-1, 0] > np.max(calm)


def test_extreme_samples_and_tails_stay_finite() -> None:
    values, tails = hostile(100, 2)
    monitor = AnomalyMonitor(2)
    monitor.watch(values, tails)
    alarm = monitor.watch(np.array([[1e30, -1e30]]), np.zeros((1, 2)))
    assert ((alarm.probability >= 0.0) & (alarm.probability <= 1.0)).all()
    assert np.isfinite(alarm.surprise).all()
    assert np.isfinite(monitor.state).all()


@pytest.mark.parametrize("thinning", [(), (4,)])
def test_watching_a_row_and_streaming_it_agree(thinning: tuple[int, ...]) -> None:
    model = tiny_forecaster(thinning=thinning)
    values = np.random.default_rng(0).normal(size=60).cumsum()
    values[30] = np.nan
    whole = watch(model, values)
    stream = Forecaster(model).stream()
    for sample, probability, surprise in zip(values, *whole, strict=True):
        score = stream.push(sample)
        assert stream.alarm.probability == pytest.approx(probability, rel=1e-4, nan_ok=True)
        assert stream.alarm.surprise == pytest.approx(surprise, rel=1e-4, nan_ok=True)
        np.testing.assert_array_equal(score, score_from_tail(stream.alarm.probability))
    assert np.isnan(whole.probability[:8]).all()
    assert np.isfinite(whole.probability[8:30]).all()
