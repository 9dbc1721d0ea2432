"""The detectors that anomaly scores are compared with, and how the comparison counts."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.anomaly.detectors import moving_mad, moving_z, smoothed, static_threshold
from experiments.anomaly.nab import summarise

RNG = np.random.default_rng(0)


def spiked() -> np.ndarray:
    values = RNG.normal(size=300)
    values[200] = 12.0
    return values


@pytest.mark.parametrize("detector", [moving_z, moving_mad])
def test_moving_detectors_find_a_spike_and_look_back_only(detector):
    values = spiked()
    scores = detector(values, 64)
    assert np.isfinite(scores).all()
    assert scores.argmax() == 200
    later = values.copy()
    later[201:] = 50.0
    np.testing.assert_array_equal(detector(later, 64)[:201], scores[:201])


def test_the_moving_z_is_a_z_score():
    values = spiked()
    past = values[136:200]
    expected = abs(values[200] - past.mean()) / past.std(ddof=1)
    assert moving_z(values, 64)[200] == pytest.approx(expected, rel=1e-4)


def test_the_static_threshold_learns_from_the_start_alone():
    values = spiked()
    np.testing.assert_allclose(
        static_threshold(values, 50), np.abs(values - np.median(values[:50]))
    )


def test_smoothing_is_an_exponential_mean():
    assert smoothed(np.array([1.0, 0.0, 0.0]), 2).tolist() == [1.0, 0.5, 0.25]


def test_wins_are_counted_by_series():
    baselines = {"static threshold": 0.5, "moving z, 128": 0.3, "moving z, 512": 0.1}
    series = {
        "a": {"AUC-PR": {"ours": 0.6, **baselines}},
        "b": {"AUC-PR": {"ours": 0.4, **baselines}},
    }
    found = summarise(series, "AUC-PR")["ours"]
    assert found["mean"] == pytest.approx(0.5)
    assert found["above static threshold"] == 0.5
    assert found["above moving z, 128"] == 1.0
    assert found["above all three"] == 0.5
