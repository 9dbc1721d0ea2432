"""Anomaly monitors in the engine: what they say, and that they are part of a session's state."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from kssm.forecast.anomaly import Alarm, AnomalyMonitor, fresh_state, watch
from kssm.forecast.native import library
from kssm.forecast.testing import tiny_forecaster
from kssm.runtime import Engine
from kssm.runtime.monitors import ENTRY
from tests.runtime.fakes import POISON, SmoothingForecaster
from tests.runtime.support import CONFIG, assert_same, code_of, noise, state_of, wave


def expected(values: np.ndarray) -> Alarm:
    """What a monitor of its own says of the fake model's tails: [samples, channels]."""
    model = SmoothingForecaster()
    tail = model.prefill(torch.from_numpy(values.T), model.initial_state(values.shape[1])).tail
    return AnomalyMonitor(values.shape[1]).watch(values, tail.T.numpy())


def test_every_frame_has_the_monitors_probability_and_surprise(running: Engine) -> None:
    values = noise(40, 3)
    values[30, 1] = 8.0
    values[5] = np.nan
    wanted, key = expected(values), running.open(3).result()
    for sample, probability, surprise in zip(values, *wanted, strict=True):
        result = running.append(key, sample[None]).result()
        np.testing.assert_array_equal(result.tail, probability)
        np.testing.assert_array_equal(result.surprise, surprise)


@pytest.mark.parametrize("cuts", [[40], [3, 5, 40], [7, 30, 37]], ids=str)
def test_a_message_has_its_most_extreme_sample(running: Engine, cuts: list[int]) -> None:
    """Messages of fewer than 8 samples are stepped through, longer ones run in chunks."""
    values = noise(60, 2)
    values[20, 0], values[52, 1] = 9.0, np.nan
    wanted, key = expected(values), running.open(2).result()
    for start, stop in zip([0, *cuts], [*cuts, 60], strict=True):
        result = running.append(key, values[start:stop]).result()
        lowest = np.fmin.reduce(wanted.probability[start:stop])
        np.testing.assert_array_equal(result.tail, lowest)
        np.testing.assert_array_equal(result.score, -np.log10(lowest))
        np.testing.assert_array_equal(result.surprise, np.fmax.reduce(wanted.surprise[start:stop]))


def test_a_model_is_watched_alike_by_the_engine_and_the_library() -> None:
    model = tiny_forecaster(thinning=(4,))
    values = wave(70, 1)
    whole = watch(model, values[:, 0])
    with Engine(model, CONFIG) as engine:
        key = engine.open(1).result()
        results = [engine.append(key, sample[None]).result() for sample in values]
    np.testing.assert_array_equal([r.tail[0] for r in results], whole.probability)
    np.testing.assert_array_equal([r.surprise[0] for r in results], whole.surprise)


def test_whole_series_are_watched_sample_by_sample() -> None:
    model = tiny_forecaster(thinning=(4,))
    series = [wave(n, 1, seed=n)[:, 0] for n in (70, 5, 33)]
    gapped = np.ones(33)
    gapped[[12, 20]] = 3.0
    with Engine(model, CONFIG) as engine:
        plain = engine.predict(series, 2, (0.5,)).result()
        watched = engine.predict(series, 2, (0.5,), watched=True).result()
        spaced = engine.predict(series, 2, (0.5,), [None, None, gapped], watched=True).result()
    assert plain.alarms == ()
    np.testing.assert_array_equal(watched.quantiles, plain.quantiles)
    for alarm, values in zip(watched.alarms, series, strict=True):
        for said, expected in zip(alarm, watch(model, values), strict=True):
            np.testing.assert_array_equal(said, expected)
    bridged = np.insert(series[2], [12, 12, 20, 20], np.nan)
    samples = np.isin(np.arange(37), [12, 13, 22, 23], invert=True)
    for said, expected in zip(spaced.alarms[2], watch(model, bridged), strict=True):
        np.testing.assert_array_equal(said, expected[samples])


def test_gaps_are_no_samples(running: Engine) -> None:
    values, dt = noise(30), np.ones(30)
    dt[25] = 3.0
    plain, gapped = running.open(1).result(), running.open(1).result()
    running.append(plain, values[:25]).result()
    running.append(gapped, values[:25]).result()
    running.append(gapped, values[25:26], dt=dt[25:26]).result()
    state, other = state_of(running, plain)[ENTRY], state_of(running, gapped)[ENTRY]
    assert other[0, 0] == state[0, 0] + 1


def test_the_monitors_travel_with_the_state(running: Engine) -> None:
    values = noise(60, 2)
    values[35] = 7.0
    one = running.open(2).result()
    running.append(one, values[:40]).result()
    fork, other = running.fork(one).result(), running.open(2).result()
    running.append(other, noise(12, 2, seed=4)).result()
    running.load(other, state_of(running, one)).result()
    results = [running.append(key, values[40:42]).result() for key in (one, fork, other)]
    for result in results[1:]:
        np.testing.assert_array_equal(result.tail, results[0].tail)
        np.testing.assert_array_equal(result.surprise, results[0].surprise)
    assert_same(state_of(running, one), state_of(running, other))
    running.reset(one).result()
    np.testing.assert_array_equal(state_of(running, one)[ENTRY], fresh_state(2))


@pytest.mark.parametrize("samples", [1, 4, 12], ids=["step", "steps", "chunk"])
def test_what_fails_leaves_the_monitors_alone(running: Engine, samples: int) -> None:
    key, beside = running.open(2).result(), running.open(1).result()
    running.append(key, noise(30, 2)).result()
    before = state_of(running, key)
    poisoned = noise(samples, 2, seed=1)
    poisoned[-1, 1] = POISON
    failing = running.append(key, poisoned)
    running.append(beside, noise(samples))
    assert code_of(failing) == "numerical_fault"
    assert_same(state_of(running, key), before)


def test_rows_come_back_fresh(running: Engine) -> None:
    key = running.open(1).result()
    running.append(key, noise(30)).result()
    running.release(key).result()
    np.testing.assert_array_equal(
        state_of(running, running.open(1).result())[ENTRY], fresh_state(1)
    )


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def hide() -> None:
        monkeypatch.setattr(library, "load", lambda: None)

    return hide


def test_without_compiled_code_the_numbers_are_the_same(
    running: Engine, no_library: Callable[[], None]
) -> None:
    values = noise(40, 2)
    key = running.open(2).result()
    compiled = [running.append(key, sample[None]).result() for sample in values]
    no_library()
    key = running.open(2).result()
    for sample, wanted in zip(values, compiled, strict=True):
        result = running.append(key, sample[None]).result()
        np.testing.assert_allclose(result.tail, wanted.tail, rtol=1e-11)
        np.testing.assert_allclose(result.surprise, wanted.surprise, rtol=1e-11)
