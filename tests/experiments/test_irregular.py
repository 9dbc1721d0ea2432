"""The samplings of the irregular-sampling experiment, and its comparison of a whole task."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.irregular.__main__ import compare
from experiments.irregular.sampling import complete, dropped, faster, slower, tokens
from kssm.evaluation.tasks import Task
from kssm.forecast.testing import tiny_forecaster

SERIES = np.random.default_rng(0).normal(size=41).cumsum()


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_faster_signal_thinned_is_the_complete_one(factor):
    gappy = SERIES.copy()
    gappy[20] = np.nan
    sampled = faster(gappy, factor)
    assert len(sampled.values) == 40 * factor + 1
    assert sampled.values[factor // 2] != sampled.values[0]
    values, steps = tokens(sampled)
    np.testing.assert_array_equal(values, gappy)
    np.testing.assert_array_equal(steps, 1.0)
    unthinned, short = tokens(sampled, thinned=False)
    assert len(unthinned) == len(sampled.values)
    assert (short[1:] == 1.0 / factor).all()


def test_a_slower_signal_is_bridged_up_to_its_last_sample():
    values, steps = tokens(slower(SERIES, 2))
    np.testing.assert_array_equal(values[::2], SERIES[::2])
    assert np.isnan(values[1::2]).all()
    assert values[-1] == SERIES[-1]
    np.testing.assert_array_equal(steps, 1.0)


def test_lost_samples_are_missing_where_they_were():
    sampled = dropped(SERIES, 0.3, np.random.default_rng(2))
    values, _ = tokens(sampled)
    assert len(values) + sampled.late == len(SERIES)
    seen = np.isfinite(values)
    assert 0.5 < seen.mean() < 0.9
    np.testing.assert_array_equal(values[seen], SERIES[: len(values)][seen])


def test_a_complete_signal_is_read_as_it_is():
    values, steps = tokens(complete(SERIES))
    np.testing.assert_array_equal(values, SERIES)
    np.testing.assert_array_equal(steps, 1.0)


def test_a_task_is_compared_under_every_sampling():
    values = np.random.default_rng(1).normal(5.0, 1.0, size=120).astype(np.float32)
    task = Task("toy", 6, 2, 1, values, np.array([0, 60, 120]))
    found = compare(tiny_forecaster(), task, 1000, True)
    assert found["windows"] == 4
    assert found["twice the rate"] == found["four times the rate"] == 1.0
    assert 0.2 < found["30% lost"] < 5.0
    assert found["twice the rate, every sample read"] != 1.0
