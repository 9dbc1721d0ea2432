"""Scores of chosen windows: the forecasts are the model's own, after each window's own past."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kssm.forecast import Forecaster
from kssm.forecast.testing import tiny_forecaster
from kssm.training.assess import Windows, crps, forecasts

HORIZON = 20  # beyond the tiny head's 16


def windows() -> Windows:
    rng = np.random.default_rng(0)
    series = [100 + rng.normal(size=size).cumsum() for size in (90, 30, 70)]
    series[0][7] = np.nan
    cuts = [np.array([40, 41, 80]), np.array([], dtype=np.int64), np.array([9])]
    return Windows(series, cuts, HORIZON)


@pytest.mark.parametrize("thinning", [(), (4,)])
def test_forecasts_are_those_of_the_pasts_alone(thinning: tuple[int, ...]) -> None:
    model, chosen = tiny_forecaster(thinning=thinning), windows()
    pasts = [chosen.series[0][:40], chosen.series[0][:41], chosen.series[0][:80]]
    pasts.append(chosen.series[2][:9])
    levels = [i / 10 for i in range(1, 10)]
    expected, _ = Forecaster(model).predict_quantiles(pasts, HORIZON, levels)
    found = forecasts(model, chosen)
    assert found.shape == (4, 9, HORIZON)
    np.testing.assert_allclose(found.transpose(0, 2, 1), expected, rtol=1e-6)


def test_truth_is_what_came_after() -> None:
    chosen = windows()
    truth = chosen.truth()
    assert len(chosen) == len(truth) == 4
    assert chosen.samples == 80 + 9
    np.testing.assert_array_equal(truth[1], chosen.series[0][41:61])
    np.testing.assert_array_equal(truth[2, :10], chosen.series[0][80:])
    assert np.isnan(truth[2, 10:]).all()
    np.testing.assert_array_equal(truth[3], chosen.series[2][9:29])


def test_crps_is_the_weighted_quantile_loss() -> None:
    model, chosen = tiny_forecaster(), windows()
    truth = chosen.truth()[:, None]
    levels = np.arange(1, 10)[:, None] / 10
    error = truth - forecasts(model, chosen)
    pinball = np.where(error > 0, levels * error, (levels - 1) * error)
    expected = 2 * np.nansum(pinball) / 9 / np.nansum(np.abs(truth))
    assert crps(model, chosen) == pytest.approx(expected)
    silent = Windows([np.zeros(30)], [np.array([10])], 5)
    assert math.isnan(crps(model, silent))
