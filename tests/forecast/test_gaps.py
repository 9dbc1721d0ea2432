"""Bridging of gaps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kssm.forecast.gaps import MIN_STEP, bridge, thin, tokens_per_sample

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


@pytest.mark.parametrize("factor", [2, 3, 4, 5, 8, 10, 60])
def test_of_samples_at_a_multiple_of_the_rate_one_an_interval_is_read(factor: int) -> None:
    read, steps, elapsed = thin(np.full(20 * factor, 1.0 / factor))
    assert np.flatnonzero(read).tolist() == list(range(factor - 1, 20 * factor, factor))
    np.testing.assert_allclose(steps, 1.0)
    assert elapsed == 0.0


@pytest.mark.parametrize("step", [0.67, 0.9, 1.0, 1.4, 7.0])
def test_samples_about_an_interval_apart_are_all_read(step: float) -> None:
    dt = np.full(30, step)
    read, steps, _ = thin(dt)
    assert read.all()
    np.testing.assert_array_equal(steps, dt)


@given(GAPS, st.integers(0, 20), st.floats(0.0, 0.9))
def test_thinning_keeps_time_and_may_be_cut_anywhere(
    gaps: list[float], cut: int, elapsed: float
) -> None:
    dt = np.array(gaps)
    read, steps, after = thin(dt, elapsed)
    assert read.sum() == len(steps)
    assert steps.sum() + after == pytest.approx(dt.sum() + elapsed)
    first = thin(dt[:cut], elapsed)
    second = thin(dt[cut:], first[2])
    np.testing.assert_array_equal(np.concatenate([first[0], second[0]]), read)
    np.testing.assert_array_equal(np.concatenate([first[1], second[1]]), steps)
    assert second[2] == after
