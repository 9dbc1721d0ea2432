"""Bridging of gaps."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kssm.forecast.gaps import MIN_STEP, bridge, tokens_per_sample

GAPS = st.lists(st.floats(1e-9, 1e6), min_size=1, max_size=20)


def test_short_steps_pass_through() -> None:
    values, dt = np.arange(8.0).reshape(4, 2), np.array([0.5, 1.0, 1.4, 0.01])
    bridged, steps = bridge(values, dt, max_gap=1024)
    np.testing.assert_array_equal(bridged, values)
    np.testing.assert_array_equal(steps, dt)


def test_a_long_gap_is_crossed_in_equal_missing_steps_before_its_sample() -> None:
    bridged, steps = bridge(np.array([[1.0], [2.0]]), np.array([1.0, 2.7]), max_gap=1024)
    np.testing.assert_array_equal(bridged, [[1.0], [np.nan], [np.nan], [2.0]])
    np.testing.assert_allclose(steps, [1.0, 0.9, 0.9, 0.9])


def test_a_gap_longer_than_the_limit_counts_as_the_limit() -> None:
    bridged, steps = bridge(np.array([[7.0]]), np.array([1e9]), max_gap=1024)
    assert bridged.shape == (1024, 1)
    assert steps.sum() == 1024.0
    assert bridged[-1, 0] == 7.0


@given(GAPS, st.integers(1, 2000))
def test_time_samples_and_bounds_are_kept(gaps: list[float], max_gap: int) -> None:
    dt = np.array(gaps)
    values = np.arange(2.0 * len(gaps)).reshape(-1, 2)
    bridged, steps = bridge(values, dt, max_gap)
    assert len(bridged) == len(steps) == tokens_per_sample(dt, max_gap).sum()
    assert (steps <= 1.5).all()
    assert (steps > 0).all()
    np.testing.assert_allclose(steps.sum(), np.clip(dt, MIN_STEP, max_gap).sum(), rtol=1e-12)
    seen = ~np.isnan(bridged).any(axis=1)
    np.testing.assert_array_equal(bridged[seen], values)
    ends = np.cumsum(steps)[seen]
    np.testing.assert_allclose(ends, np.cumsum(np.clip(dt, MIN_STEP, max_gap)), rtol=1e-9)
