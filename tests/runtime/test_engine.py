"""The engine's behaviour: results, order, refusals, limits and counters."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import numpy as np
import torch

from kssm.errors import CapacityError, NotFoundError
from kssm.runtime import Engine
from kssm.runtime.worker import Worker
from tests.runtime.fakes import SmoothingForecaster
from tests.runtime.support import assert_same, code_of, held, noise, state_of


def test_a_result_holds_what_was_asked_for(running: Engine) -> None:
    key = running.open(3).result()
    result = running.append(key, noise(2, 3), horizon=5, levels=(0.2, 0.5)).result()
    assert result.quantiles.shape == (3, 2, 5)
    assert (result.horizon, result.levels) == (5, (0.2, 0.5))
    assert (result.quantiles[:, 0] < result.quantiles[:, 1]).all()
    assert result.tail.shape == result.score.shape == result.surprise.shape == (3,)
    np.testing.assert_allclose(result.score, -np.log10(result.tail))


def test_without_a_forecast_there_are_scores_only(running: Engine) -> None:
    key = running.open(2).result()
    result = running.append(key, noise(3, 2), want_forecast=False).result()
    assert result.quantiles.shape == (2, 0, 0)
    assert (result.horizon, result.levels) == (0, ())
    assert np.isfinite(result.score).all()


def test_the_tail_is_the_smallest_of_the_message(running: Engine) -> None:
    one, other, prompt = (running.open(1).result() for _ in range(3))
    values = noise(20)
    values[11] = 9.0
    tails = [running.append(one, values[i : i + 1]).result().tail[0] for i in range(20)]
    assert np.isnan(tails[0])
    steps = [running.append(other, values[i : i + 5]).result().tail[0] for i in range(0, 20, 5)]
    assert steps == [np.nanmin(tails[i : i + 5]) for i in range(0, 20, 5)]
    assert running.append(prompt, values).result().tail[0] == min(steps)


def test_jobs_of_a_session_run_in_order(engine: Engine) -> None:
    engine.start()
    key, reference = engine.open(1).result(), engine.open(1).result()
    signal = noise(60)
    futures: list[Future[Any]] = [
        engine.append(key, signal[:40]),
        engine.append(key, signal[40:43]),
        engine.forecast(key, 4, (0.5,)),
        engine.export(key),
        engine.reset(key),
        engine.append(key, signal[43:44]),
        engine.fork(key),
        engine.append(key, signal[44:60]),
        engine.release(key),
    ]
    results = [future.result() for future in futures]
    engine.append(reference, signal[:40]).result()
    for i in range(40, 43):
        expected = engine.append(reference, signal[i : i + 1], horizon=4, levels=(0.5,)).result()
    np.testing.assert_array_equal(results[2].quantiles, expected.quantiles)
    assert_same(results[3], state_of(engine, reference))
    engine.reset(reference).result()
    engine.append(reference, signal[43:44]).result()
    assert_same(state_of(engine, results[6]), state_of(engine, reference))
    assert np.isnan(results[2].tail).all()


def test_unknown_and_released_sessions_are_not_found(running: Engine) -> None:
    key = running.open(1).result()
    running.release(key).result()
    calls: list[Future[Any]] = [
        running.append(key, noise(1)),
        running.forecast(key, 1, (0.5,)),
        running.reset(key),
        running.fork(key),
        running.export(key),
        running.load(key, {}),
        running.release(key),
        running.append(12345, noise(1)),
    ]
    for call in calls:
        assert isinstance(call.exception(), NotFoundError)
        assert code_of(call) == "session_not_found"
    assert running.stats().rows_used == 0


def test_bad_jobs_never_reach_the_device(running: Engine, model: SmoothingForecaster) -> None:
    key = running.open(1).result()
    before = state_of(running, key)
    model.calls.clear()
    bad = {
        "non_finite_value": running.append(key, np.array([[1.0], [np.inf]])),
        "value_out_of_range": running.append(key, np.array([[2e30]])),
        "wrong_shape": running.append(key, noise(1, 2)),
        "empty_frame": running.append(key, np.empty((0, 1))),
        "invalid_timestamps": running.append(key, noise(2), dt=np.array([1.0, 0.0])),
        "invalid_horizon": running.append(key, noise(1), horizon=0),
        "invalid_quantiles": running.forecast(key, 1, (1.5,)),
        "message_too_large": running.append(key, noise(501)),
        "invalid_request": running.open(0),
        "state_malformed": running.load(key, {"level": np.zeros(1)}),
    }
    assert {code_of(future): code for code, future in bad.items()} == {code: code for code in bad}
    assert_same(state_of(running, key), before)
    assert model.calls == []


def test_bad_predictions_never_reach_the_device(
    running: Engine, model: SmoothingForecaster
) -> None:
    good = np.zeros(3)
    assert code_of(running.predict([], 1, (0.5,))) == "empty_frame"
    assert code_of(running.predict([good, np.zeros(0)], 1, (0.5,))) == "empty_frame"
    assert code_of(running.predict([np.zeros((2, 1))], 1, (0.5,))) == "wrong_shape"
    assert code_of(running.predict([np.array([np.inf])], 1, (0.5,))) == "non_finite_value"
    assert code_of(running.predict([good], 1, (0.5,), [])) == "invalid_timestamps"
    assert code_of(running.predict([good], 1, (0.5,), [np.zeros(3)])) == "invalid_timestamps"
    gaps = [np.full(3, 1e9)] * 2
    assert code_of(running.predict([good, good], 1, (0.5,), gaps)) == "message_too_large"
    assert model.calls == []


@torch.inference_mode()
def test_equal_queries_share_a_call(engine: Engine, model: SmoothingForecaster) -> None:
    opened = [engine.open(2) for _ in range(4)]
    engine.start()
    keys = [future.result() for future in opened]
    worker: Worker = engine._worker
    engine.close()
    model.calls.clear()
    jobs = [
        engine._requests.append(engine._sessions[key], noise(1, 2), None, (h, (0.5,)))
        for key, h in zip(keys, [3, 3, 4, 3], strict=True)
    ]
    jobs.append(engine._requests.append(engine._sessions[keys[0]], noise(1, 2), None, None))
    worker.accept(jobs)
    worker.tick()
    assert model.calls == [("step", 8), ("forecast", 6), ("forecast", 2)]
    worker.tick()
    assert model.calls[3:] == [("step", 2)]
    assert all(job.future.done() for job in jobs)


@torch.inference_mode()
def test_streams_are_answered_while_a_prediction_runs(engine: Engine) -> None:
    key_future = engine.open(1)
    engine.start()
    session = engine._sessions[key_future.result()]
    engine.close()
    worker = engine._worker
    long = engine._requests.predict([np.zeros(200)] * 9, None, 3, (0.5,), watched=False)
    prompt = engine._requests.append(session, noise(64), None, None)
    worker.accept([long, prompt])
    for _ in range(8):  # every other turn is the prompt's
        worker.tick()
    assert prompt.future.done()
    frame = engine._requests.append(session, noise(1), None, None)
    worker.accept([frame])
    worker.tick()
    assert frame.future.done()
    assert not long.future.done()
    while worker.busy:
        worker.tick()
    assert long.future.result().quantiles.shape == (9, 3, 1)


def test_the_queue_is_bounded(engine: Engine) -> None:
    engine.start()
    key = engine.open(1).result()
    with held(engine):
        accepted = [engine.append(key, noise(5)) for _ in range(99)]
        refused = [engine.append(key, noise(5)) for _ in range(5)]
        bulk = engine.append(key, noise(400))
        assert {code_of(future) for future in refused} == {"overloaded"}
        assert all(isinstance(future.exception(), CapacityError) for future in refused)
        release = engine.release(key)
    assert all(future.result() for future in [*accepted, bulk])
    assert release.result() is None
    assert engine.stats().pending_tokens == 0


def test_rows_run_out_and_come_back(running: Engine) -> None:
    wide = running.open(60).result()
    key = running.open(4).result()
    assert code_of(running.open(1)) == "rows_exhausted"
    assert code_of(running.fork(key)) == "rows_exhausted"
    assert running.append(key, noise(1, 4)).result().quantiles.shape == (4, 3, 24)
    running.release(wide).result()
    assert running.fork(key).result()
    assert running.stats().rows_total == 64


def test_stats_count(running: Engine) -> None:
    key = running.open(3).result()
    running.append(key, noise(2, 3)).result()
    running.append(key, noise(20, 3)).result()
    running.predict([np.zeros(7)], 2, (0.5,)).result()
    stats = running.stats()
    assert (stats.sessions, stats.rows_used, stats.rows_total, stats.rows_max) == (1, 3, 4, 64)
    assert stats.arena_bytes == 5 * 40
    assert (stats.tokens_stepped, stats.tokens_prefilled) == (6, 67)
    assert stats.batch_sizes == {4: 2}
    assert stats.step_ms.keys() == {"p50", "p90", "p99"}
    assert stats.forecasts == 2
    assert (stats.pending_tokens, stats.faults, stats.quarantined) == (0, 0, 0)
    assert stats.ticks >= 5


def test_a_question_that_is_known_is_still_checked(running: Engine) -> None:
    key = running.open(1).result()
    for levels in ((0.5,), [0.5], np.array([0.5])):
        result = running.append(key, noise(1), horizon=1, levels=levels).result()
        assert (result.horizon, result.levels) == (1, (0.5,))
    for horizon in (True, 1.0):
        assert code_of(running.append(key, noise(1), horizon=horizon)) == "invalid_horizon"
    for levels in (([0.5],), ({},), "x"):
        assert code_of(running.forecast(key, 1, levels)) == "invalid_quantiles"  # type: ignore[arg-type]


@torch.inference_mode()
def test_a_result_does_not_hold_on_to_its_batch(engine: Engine) -> None:
    opened = [engine.open(2) for _ in range(3)]
    engine.start()
    keys = [future.result() for future in opened]
    engine.close()
    jobs = [
        engine._requests.append(engine._sessions[key], noise(1, 2), None, (3, (0.5,)))
        for key in keys
    ]
    engine._worker.accept(jobs)
    engine._worker.tick()
    for job in jobs:
        result = job.future.result()
        for array in (result.quantiles, result.anomaly):
            owner = array if array.base is None else array.base
            assert owner.size == array.size
