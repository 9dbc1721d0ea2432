"""Scores, calibrated probabilities and sustained surprise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kssm.forecast import Forecaster, scaler
from kssm.forecast.anomaly import AnomalyMonitor, level_tail, score_from_tail, watch
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
    monitor = AnomalyMonitor(10)
    rows = normal_tails(widths).reshape(-1, 10)
    found = np.stack([monitor.update(tails, np.full(10, 0.5)).probability for tails in rows])
    settled = found[1000:]
    for level in (0.1, 0.01, 0.003):
        assert (settled < level).mean() == pytest.approx(level, rel=0.25)


def test_inside_the_outer_quantiles_nothing_changes() -> None:
    alarm = AnomalyMonitor(2).update(np.array([0.21, 0.9]), np.array([0.5, 0.5]))
    assert alarm.probability.tolist() == [0.21, 0.9]


def test_missing_samples_leave_the_state_alone() -> None:
    monitor = AnomalyMonitor(2)
    monitor.update(np.array([0.001, 0.3]), np.array([0.4, 0.4]))
    before = monitor.state.copy()
    alarm = monitor.update(np.array([np.nan, np.nan]), np.array([np.nan, np.nan]))
    assert np.array_equal(monitor.state, before)
    assert np.isnan(alarm.probability).all()
    assert np.isnan(alarm.surprise).all()


def test_a_state_can_be_carried_on() -> None:
    rng = np.random.default_rng(3)
    tails, levels = rng.uniform(size=(2, 50, 3))
    whole, first = AnomalyMonitor(3), AnomalyMonitor(3)
    for t, v in zip(tails[:20], levels[:20], strict=True):
        whole.update(t, v)
        first.update(t, v)
    second = AnomalyMonitor(3, first.state)
    for t, v in zip(tails[20:], levels[20:], strict=True):
        assert np.array_equal(whole.update(t, v), second.update(t, v))


def test_surprise_rests_at_its_expectation_and_rises_with_a_shift() -> None:
    rng = np.random.default_rng(5)
    monitor = AnomalyMonitor(1)
    calm = [monitor.update(*rng.uniform(size=(2, 1))).surprise[0] for _ in range(3000)]
    assert np.mean(calm) == pytest.approx(EXPECTED, rel=0.05)
    for _ in range(32):
        shifted = monitor.update(np.array([0.05]), np.array([1e-4]))
    assert shifted.surprise[0] > np.max(calm)


def test_extreme_tails_stay_finite() -> None:
    monitor = AnomalyMonitor(1)
    for tail in (0.0, 1e-320, 1.0, 0.2):
        alarm = monitor.update(np.array([tail]), np.array([0.0]))
        assert 0.0 <= alarm.probability[0] <= 1.0
        assert np.isfinite(alarm.surprise[0])
    assert np.isfinite(monitor.state).all()


@pytest.mark.parametrize("thinning", [(), (4,)])
def test_watching_a_row_and_streaming_it_agree(thinning: tuple[int, ...]) -> None:
    model = tiny_forecaster(thinning=thinning)
    values = np.random.default_rng(0).normal(size=60).cumsum()
    values[30] = np.nan
    whole = watch(model, values)
    stream = Forecaster(model).stream()
    for sample, probability, surprise in zip(values, *whole, strict=True):
        stream.push(sample)
        assert stream.alarm.probability == pytest.approx(probability, rel=1e-4, nan_ok=True)
        assert stream.alarm.surprise == pytest.approx(surprise, rel=1e-4, nan_ok=True)
    assert np.isnan(whole.probability[:8]).all()
    assert np.isfinite(whole.probability[8:30]).all()
