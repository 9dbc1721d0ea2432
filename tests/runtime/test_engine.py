"""The engine's behaviour: order, atomicity, errors, limits, life and death."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from kssm.errors import CapacityError, KSSMError, NotFoundError, NumericalError
from kssm.runtime import Engine, EngineConfig
from kssm.runtime.contract import Floats
from kssm.runtime.jobs import Session
from kssm.runtime.worker import Worker
from tests.runtime.fakes import POISON, SmoothingForecaster

CONFIG = EngineConfig(
    max_rows=64, initial_rows=2, prefill_tokens=64, chunk_tokens=16, prefill_min=8, max_pending=500
)
State = dict[str, np.ndarray[Any, Any]]


@pytest.fixture
def model() -> SmoothingForecaster:
    return SmoothingForecaster()


@pytest.fixture
def engine(model: SmoothingForecaster) -> Iterator[Engine]:
    """Not started: what a test submits before ``start`` arrives as one."""
    engine = Engine(model, CONFIG)
    yield engine
    engine.close(drain=False)


@pytest.fixture
def running(engine: Engine) -> Engine:
    engine.start()
    return engine


def _signal(samples: int, channels: int = 1, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=(samples, channels))


def _code(future: Future[Any]) -> str:
    error = future.exception(timeout=10)
    assert isinstance(error, KSSMError), error
    return error.code


def _state(engine: Engine, key: int) -> State:
    return engine.export(key).result()


@contextmanager
def _held(engine: Engine) -> Generator[None]:
    """The device thread waits while the block submits."""
    entered, gate = threading.Event(), threading.Event()

    def wait(_: Session) -> None:
        entered.set()
        gate.wait(10)

    key = engine.open(1).result()
    engine._control(key, wait)
    engine.release(key)
    assert entered.wait(10)
    yield
    gate.set()


def _assert_same(left: State, right: State) -> None:
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])


def test_a_result_holds_what_was_asked_for(running: Engine) -> None:
    key = running.open(3).result()
    result = running.append(key, _signal(2, 3), horizon=5, levels=(0.2, 0.5)).result()
    assert result.quantiles.shape == (3, 2, 5)
    assert (result.horizon, result.levels) == (5, (0.2, 0.5))
    assert (result.quantiles[:, 0] < result.quantiles[:, 1]).all()
    assert result.tail.shape == result.score.shape == (3,)
    np.testing.assert_allclose(result.score, -np.log10(result.tail))


def test_without_a_forecast_there_are_scores_only(running: Engine) -> None:
    key = running.open(2).result()
    result = running.append(key, _signal(3, 2), want_forecast=False).result()
    assert result.quantiles.shape == (2, 0, 0)
    assert (result.horizon, result.levels) == (0, ())
    assert np.isfinite(result.score).all()


def test_the_tail_is_the_smallest_of_the_message(running: Engine) -> None:
    one, other, prompt = (running.open(1).result() for _ in range(3))
    values = _signal(20)
    values[11] = 9.0
    tails = [running.append(one, values[i : i + 1]).result().tail[0] for i in range(20)]
    assert np.isnan(tails[0])
    steps = [running.append(other, values[i : i + 5]).result().tail[0] for i in range(0, 20, 5)]
    assert steps == [np.nanmin(tails[i : i + 5]) for i in range(0, 20, 5)]
    assert running.append(prompt, values).result().tail[0] == min(steps)


def test_jobs_of_a_session_run_in_order(engine: Engine) -> None:
    engine.start()
    key, reference = engine.open(1).result(), engine.open(1).result()
    signal = _signal(60)
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
    _assert_same(results[3], _state(engine, reference))
    engine.reset(reference).result()
    engine.append(reference, signal[43:44]).result()
    _assert_same(_state(engine, results[6]), _state(engine, reference))
    assert np.isnan(results[2].tail).all()


def test_unknown_and_released_sessions_are_not_found(running: Engine) -> None:
    key = running.open(1).result()
    running.release(key).result()
    calls: list[Future[Any]] = [
        running.append(key, _signal(1)),
        running.forecast(key, 1, (0.5,)),
        running.reset(key),
        running.fork(key),
        running.export(key),
        running.load(key, {}),
        running.release(key),
        running.append(12345, _signal(1)),
    ]
    for call in calls:
        assert isinstance(call.exception(), NotFoundError)
        assert _code(call) == "session_not_found"
    assert running.stats().rows_used == 0


def test_bad_jobs_never_reach_the_device(running: Engine, model: SmoothingForecaster) -> None:
    key = running.open(1).result()
    before = _state(running, key)
    model.calls.clear()
    bad = {
        "non_finite_value": running.append(key, np.array([[1.0], [np.inf]])),
        "value_out_of_range": running.append(key, np.array([[2e30]])),
        "wrong_shape": running.append(key, _signal(1, 2)),
        "empty_frame": running.append(key, np.empty((0, 1))),
        "invalid_timestamps": running.append(key, _signal(2), dt=np.array([1.0, 0.0])),
        "invalid_horizon": running.append(key, _signal(1), horizon=0),
        "invalid_quantiles": running.forecast(key, 1, (1.5,)),
        "message_too_large": running.append(key, _signal(501)),
        "invalid_request": running.open(0),
        "state_malformed": running.load(key, {"level": np.zeros(1)}),
    }
    assert {_code(future): code for code, future in bad.items()} == {code: code for code in bad}
    _assert_same(_state(running, key), before)
    assert model.calls == []


def test_bad_predictions_never_reach_the_device(
    running: Engine, model: SmoothingForecaster
) -> None:
    good = np.zeros(3)
    assert _code(running.predict([], 1, (0.5,))) == "empty_frame"
    assert _code(running.predict([good, np.zeros(0)], 1, (0.5,))) == "empty_frame"
    assert _code(running.predict([np.zeros((2, 1))], 1, (0.5,))) == "wrong_shape"
    assert _code(running.predict([np.array([np.inf])], 1, (0.5,))) == "non_finite_value"
    assert _code(running.predict([good], 1, (0.5,), [])) == "invalid_timestamps"
    assert _code(running.predict([good], 1, (0.5,), [np.zeros(3)])) == "invalid_timestamps"
    gaps = [np.full(3, 1e9)] * 2
    assert _code(running.predict([good, good], 1, (0.5,), gaps)) == "message_too_large"
    assert model.calls == []


@pytest.mark.parametrize("samples", [1, 5, 40], ids=["step", "steps", "chunks"])
def test_a_poisoned_job_leaves_the_state_as_it_was(running: Engine, samples: int) -> None:
    key = running.open(2).result()
    running.append(key, _signal(6, 2)).result()
    before = _state(running, key)
    values = _signal(samples, 2)
    values[-1, 1] = POISON
    fault = running.append(key, values).exception()
    assert isinstance(fault, NumericalError)
    assert fault.code == "numerical_fault"
    _assert_same(_state(running, key), before)
    stats = running.stats()
    assert (stats.faults, stats.quarantined) == (1, 1)
    result = running.append(key, _signal(samples, 2)).result()
    assert np.isfinite(result.quantiles).all()
    running.reset(key).result()
    assert running.stats().quarantined == 0


@pytest.mark.parametrize("call", ["step", "forecast", "prefill"])
def test_a_model_that_raises_fails_that_batch_only(
    running: Engine, model: SmoothingForecaster, call: str
) -> None:
    key, other = running.open(1).result(), running.open(1).result()
    running.append(key, _signal(3)).result()
    before = _state(running, key)
    model.fail_next.add(call)
    samples = 20 if call == "prefill" else 1
    failed = running.append(key, _signal(samples)).exception()
    assert isinstance(failed, KSSMError)
    assert failed.code == "internal"
    assert "luck" not in failed.message
    assert isinstance(failed.__cause__, ZeroDivisionError)
    if call != "forecast":
        _assert_same(_state(running, key), before)
    assert np.isfinite(running.append(other, _signal(samples)).result().quantiles).all()
    assert np.isfinite(running.append(key, _signal(samples)).result().quantiles).all()


def test_a_forecast_that_is_not_finite_says_that_its_samples_were_applied(
    running: Engine, monkeypatch: pytest.MonkeyPatch, model: SmoothingForecaster
) -> None:
    key, reference = running.open(1).result(), running.open(1).result()
    forecast = model.forecast
    with monkeypatch.context() as patch:
        patch.setattr(model, "forecast", lambda *a: forecast(*a) / 0.0)
        fault = running.append(key, _signal(1)).exception()
    assert isinstance(fault, NumericalError)
    assert fault.details == {"applied": True}
    running.append(reference, _signal(1)).result()
    _assert_same(_state(running, key), _state(running, reference))


def test_no_forecast_yet_is_not_a_fault(
    running: Engine, monkeypatch: pytest.MonkeyPatch, model: SmoothingForecaster
) -> None:
    key = running.open(1).result()
    forecast = model.forecast
    monkeypatch.setattr(model, "forecast", lambda *a: forecast(*a) * np.nan)
    assert np.isnan(running.append(key, np.array([[np.nan]])).result().quantiles).all()
    assert np.isnan(running.predict([np.array([np.nan])], 3, (0.5,)).result()).all()
    assert running.stats().faults == 0


def test_a_prediction_that_fails_names_its_series(
    running: Engine, model: SmoothingForecaster
) -> None:
    series = [np.zeros(4), np.array([1.0, POISON]), np.zeros(30)]
    fault = running.predict(series, 2, (0.5,)).exception()
    assert isinstance(fault, NumericalError)
    assert fault.details == {"series": 1}
    model.fail_next.add("prefill")
    assert _code(running.predict(series[:1], 2, (0.5,))) == "internal"
    assert running.predict(series[:1], 2, (0.5,)).result().shape == (1, 2, 1)
    assert running.stats().pending_tokens == 0


@torch.inference_mode()
def test_equal_queries_share_a_call(engine: Engine, model: SmoothingForecaster) -> None:
    opened = [engine.open(2) for _ in range(4)]
    engine.start()
    keys = [future.result() for future in opened]
    worker: Worker = engine._worker
    engine.close()
    model.calls.clear()
    jobs = [
        engine._requests.append(engine._sessions[key], _signal(1, 2), None, (h, (0.5,)))
        for key, h in zip(keys, [3, 3, 4, 3], strict=True)
    ]
    jobs.append(engine._requests.append(engine._sessions[keys[0]], _signal(1, 2), None, None))
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
    long = engine._requests.predict([np.zeros(200)] * 9, None, 3, (0.5,))
    prompt = engine._requests.append(session, _signal(64), None, None)
    worker.accept([long, prompt])
    for _ in range(8):  # every other turn is the prompt's
        worker.tick()
    assert prompt.future.done()
    frame = engine._requests.append(session, _signal(1), None, None)
    worker.accept([frame])
    worker.tick()
    assert frame.future.done()
    assert not long.future.done()
    while worker.busy:
        worker.tick()
    assert long.future.result().shape == (9, 3, 1)


def test_a_cancelled_job_is_not_applied(engine: Engine) -> None:
    engine.start()
    key = engine.open(1).result()
    engine.append(key, _signal(3)).result()
    before = _state(engine, key)
    with _held(engine):
        cancelled: list[Future[Any]] = [
            engine.append(key, _signal(1)),
            engine.append(key, _signal(30)),
            engine.reset(key),
            engine.open(1),
            engine.predict([np.zeros(9)], 1, (0.5,)),
        ]
        assert all(future.cancel() for future in cancelled)
    _assert_same(_state(engine, key), before)
    stats = engine.stats()
    assert (stats.rows_used, stats.pending_tokens, stats.sessions) == (1, 0, 1)


def test_a_cancelled_release_still_frees_the_rows(engine: Engine) -> None:
    engine.start()
    key = engine.open(3).result()
    with _held(engine):
        assert engine.release(key).cancel()
    engine.open(1).result()
    assert engine.stats().rows_used == 1


def test_the_queue_is_bounded(engine: Engine) -> None:
    engine.start()
    key = engine.open(1).result()
    with _held(engine):
        accepted = [engine.append(key, _signal(5)) for _ in range(99)]
        refused = [engine.append(key, _signal(5)) for _ in range(5)]
        bulk = engine.append(key, _signal(400))
        assert {_code(future) for future in refused} == {"overloaded"}
        assert all(isinstance(future.exception(), CapacityError) for future in refused)
        release = engine.release(key)
    assert all(future.result() for future in [*accepted, bulk])
    assert release.result() is None
    assert engine.stats().pending_tokens == 0


def test_rows_run_out_and_come_back(running: Engine) -> None:
    wide = running.open(60).result()
    key = running.open(4).result()
    assert _code(running.open(1)) == "rows_exhausted"
    assert _code(running.fork(key)) == "rows_exhausted"
    assert running.append(key, _signal(1, 4)).result().quantiles.shape == (4, 3, 24)
    running.release(wide).result()
    assert running.fork(key).result()
    assert running.stats().rows_total == 64


def test_stats_count(running: Engine) -> None:
    key = running.open(3).result()
    running.append(key, _signal(2, 3)).result()
    running.append(key, _signal(20, 3)).result()
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


def test_closing_finishes_what_was_accepted(running: Engine) -> None:
    keys = [running.open(1).result() for _ in range(3)]
    futures = [running.append(key, _signal(n)) for key in keys for n in (1, 40, 3)]
    futures_of_series = running.predict([np.zeros(100)] * 3, 2, (0.5,))
    running.close()
    assert all(future.done() for future in futures)
    assert all(np.isfinite(future.result().quantiles).all() for future in futures)
    assert futures_of_series.result().shape == (3, 2, 1)
    assert _code(running.append(keys[0], _signal(1))) == "draining"
    assert _code(running.open(1)) == "draining"
    running.close()


def test_closing_at_once_fails_what_was_accepted(engine: Engine) -> None:
    engine.start()
    key = engine.open(1).result()
    closer = threading.Thread(target=engine.close, kwargs={"drain": False})
    with _held(engine):
        futures: list[Future[Any]] = [engine.append(key, _signal(30)), engine.reset(key)]
        closer.start()
        while not engine._closed:
            time.sleep(0)
    closer.join(10)
    assert [_code(future) for future in futures] == ["draining", "draining"]


def test_an_engine_that_never_ran_fails_its_jobs_on_closing(engine: Engine) -> None:
    future = engine.open(1)
    engine.close()
    assert _code(future) == "draining"
    with pytest.raises(RuntimeError):
        engine.start()


def test_the_context_manager_drains(model: SmoothingForecaster) -> None:
    with Engine(model, CONFIG) as engine:
        key = engine.open(1).result()
        future = engine.append(key, _signal(400))
    assert np.isfinite(future.result().quantiles).all()
    with pytest.raises(RuntimeError):
        engine.start()


@pytest.mark.parametrize("where", ["accept", "tick", "_settle"])
def test_nothing_hangs_when_the_device_thread_dies(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    engine.start()
    key = engine.open(1).result()

    def die(*_: object) -> None:
        raise SystemExit("unexpected")

    with _held(engine):
        futures: list[Future[Any]] = [
            engine.append(key, _signal(1)),
            engine.append(key, _signal(1)),
            engine.predict([np.zeros(100)], 1, (0.5,)),
        ]
        monkeypatch.setattr(engine._worker, where, die)
    assert {_code(future) for future in futures} == {"internal"}
    assert _code(engine.append(key, _signal(1))) == "internal"
    engine.close()


def test_callbacks_may_use_the_engine(running: Engine) -> None:
    key = running.open(1).result()
    second: Future[Any] = Future()

    def follow_up(_: Future[Any]) -> None:
        running.append(key, _signal(1)).add_done_callback(lambda f: second.set_result(f.result()))

    running.append(key, _signal(1)).add_done_callback(follow_up)
    assert second.result(timeout=10).quantiles.shape == (1, 3, 24)


def test_many_threads(running: Engine) -> None:
    signal = _signal(60)
    alone = running.open(1).result()
    for value in signal:
        expected = running.append(alone, value[None]).result()
    results: list[Floats] = []

    def stream() -> None:
        key = running.open(1).result()
        futures = [running.append(key, value[None]) for value in signal]
        results.append(futures[-1].result(timeout=30).quantiles)
        running.release(key).result(timeout=30)

    threads = [threading.Thread(target=stream) for _ in range(7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(results) == 7
    for quantiles in results:
        np.testing.assert_array_equal(quantiles, expected.quantiles)
    assert running.stats().rows_used == 1


@pytest.mark.parametrize("drain", [True, False])
def test_every_future_ends_whatever_happens_around_the_close(
    model: SmoothingForecaster, drain: bool
) -> None:
    engine = Engine(model, CONFIG)
    engine.start()
    keys = [engine.open(1).result() for _ in range(4)]
    futures: list[Future[Any]] = []
    warm = threading.Barrier(5)

    def submit(seed: int) -> None:
        random = np.random.default_rng(seed)
        for number in range(150):
            if number == 50:
                warm.wait(10)
            futures.append(_anything(engine, keys[int(random.integers(4))], random))

    threads = [threading.Thread(target=submit, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    warm.wait(10)
    engine.close(drain)
    for thread in threads:
        thread.join(10)
    assert len(futures) == 600
    codes = {_end(future) for future in futures}
    assert _end(engine.append(keys[0], _signal(1))) == "draining"
    assert codes <= {None, "draining", "overloaded", "session_not_found", "rows_exhausted"}
    assert engine.stats().pending_tokens == 0 or not drain


def _anything(engine: Engine, key: int, random: np.random.Generator) -> Future[Any]:
    choice = int(random.integers(8))
    if choice < 3:
        return engine.append(key, _signal(int(random.integers(1, 30))))
    if choice == 3:
        return engine.predict([np.zeros(20)], 2, (0.5,))
    calls = [engine.reset, engine.fork, engine.export, engine.release]
    if choice == 7 and random.random() < 0.95:
        return engine.forecast(key, 3, (0.5,))
    return calls[choice - 4](key)


def _end(future: Future[Any]) -> str | None:
    error = future.exception(timeout=10)
    assert error is None or isinstance(error, KSSMError)
    return error.code if error else None
