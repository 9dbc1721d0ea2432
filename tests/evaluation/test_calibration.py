"""Calibration counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kssm.evaluation.calibration import calibrate, pooled

GRID = np.arange(1, 10, dtype=np.float32)[None, :, None]


def test_targets_fall_into_tenths() -> None:
    truth = np.array([[0.5], [4.5], [4.6], [9.5], [np.nan]])
    found = calibrate(truth, np.repeat(GRID, 5, axis=0))
    assert found.samples == 4
    assert found.bins.tolist() == [1, 0, 0, 0, 2, 0, 0, 0, 0, 1]
    assert found.coverage == 0.5
    assert found.below[-1] == pytest.approx(0.75)


def test_an_atom_is_spread_over_the_tenths_that_meet_in_it() -> None:
    quantiles = GRID.copy()
    quantiles[0, :4] = 0.0
    found = calibrate(np.zeros((1, 1)), quantiles)
    assert np.allclose(found.bins, [0.2] * 5 + [0.0] * 5)
    assert found.coverage == 1.0


def test_a_calibrated_forecast_has_a_flat_histogram() -> None:
    truth = np.random.default_rng(1).uniform(0.0, 10.0, size=(1, 20_000))
    found = calibrate(truth, np.repeat(GRID, truth.size, axis=2))
    assert np.allclose(found.pit, 0.1, atol=0.01)
    assert np.allclose(found.below, np.arange(1, 10) / 10, atol=0.01)
    assert found.coverage == pytest.approx(0.8, abs=0.01)


def test_nothing_to_count() -> None:
    empty = calibrate(np.empty((3, 0)), np.empty((3, 9, 0), dtype=np.float32))
    assert empty.samples == 0
    assert math.isnan(empty.coverage)
    assert pooled([]).samples == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1.0, 11.0, width=16), min_size=2, max_size=30), st.integers(1, 29))
def test_parts_add_up(values: list[float], cut: int) -> None:
    truth = np.array(values)[None]
    grid = np.repeat(GRID, truth.size, axis=2)
    parts = [calibrate(truth[:, :cut], grid[..., :cut]), calibrate(truth[:, cut:], grid[..., cut:])]
    whole = calibrate(truth, grid)
    assert np.allclose(pooled(parts).bins, whole.bins)
    assert whole.bins.sum() == pytest.approx(whole.samples)
    assert pooled(parts).inside == whole.inside
