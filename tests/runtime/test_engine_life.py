"""Cancelling, closing, dying: every future ends."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch

from kssm.errors import KSSMError
from kssm.runtime import Engine
from kssm.runtime.contract import Floats
from tests.runtime.fakes import SmoothingForecaster
from tests.runtime.support import CONFIG, assert_same, code_of, held, noise, state_of


def test_a_cancelled_job_is_not_applied(engine: Engine) -> None:
    engine.start()
    key = engine.open(1).result()
    engine.append(key, noise(3)).result()
    before = state_of(engine, key)
    with held(engine):
        cancelled: list[Future[Any]] = [
            engine.append(key, noise(1)),
            engine.append(key, noise(30)),
            engine.reset(key),
            engine.open(1),
            engine.predict([np.zeros(9)], 1, (0.5,)),
        ]
        assert all(future.cancel() for future in cancelled)
    assert_same(state_of(engine, key), before)
    stats = engine.stats()
    assert (stats.rows_used, stats.pending_tokens, stats.sessions) == (1, 0, 1)


def test_a_cancelled_release_still_frees_the_rows(engine: Engine) -> None:
    engine.start()
    key = engine.open(3).result()
    with held(engine):
        assert engine.release(key).cancel()
    engine.open(1).result()
    assert engine.stats().rows_used == 1


def test_closing_finishes_what_was_accepted(running: Engine) -> None:
    keys = [running.open(1).result() for _ in range(3)]
    futures = [running.append(key, noise(n)) for key in keys for n in (1, 40, 3)]
    futures_of_series = running.predict([np.zeros(100)] * 3, 2, (0.5,))
    running.close()
    assert all(future.done() for future in futures)
    assert all(np.isfinite(future.result().quantiles).all() for future in futures)
    assert futures_of_series.result().quantiles.shape == (3, 2, 1)
    assert code_of(running.append(keys[0], noise(1))) == "draining"
    assert code_of(running.open(1)) == "draining"
    running.close()


def test_closing_at_once_fails_what_was_accepted(engine: Engine) -> None:
    engine.start()
    key = engine.open(1).result()
    closer = threading.Thread(target=engine.close, kwargs={"drain": False})
    with held(engine):
        futures: list[Future[Any]] = [engine.append(key, noise(30)), engine.reset(key)]
        closer.start()
        while not engine._intake.closed:
            time.sleep(0)
    closer.join(10)
    assert [code_of(future) for future in futures] == ["draining", "draining"]


def test_an_engine_that_never_ran_fails_its_jobs_on_closing(engine: Engine) -> None:
    future = engine.open(1)
    engine.close()
    assert code_of(future) == "draining"
    with pytest.raises(RuntimeError):
        engine.start()


def test_the_context_manager_drains(model: SmoothingForecaster) -> None:
    with Engine(model, CONFIG) as engine:
        key = engine.open(1).result()
        future = engine.append(key, noise(400))
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

    with held(engine):
        futures: list[Future[Any]] = [
            engine.append(key, noise(1)),
            engine.append(key, noise(1)),
            engine.predict([np.zeros(100)], 1, (0.5,)),
        ]
        monkeypatch.setattr(engine._worker, where, die)
    assert {code_of(future) for future in futures} == {"internal"}
    assert code_of(engine.append(key, noise(1))) == "internal"
    engine.close()


def test_a_lost_gpu_ends_the_engine(
    running: Engine, model: SmoothingForecaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an illegal access, say, no call succeeds any more: a new process is needed."""

    def lost() -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    key, other = running.open(1).result(), running.open(1).result()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    model.fail_next.add("step")
    assert code_of(running.append(key, noise(1))) == "internal"
    assert running.alive
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    model.fail_next.add("step")
    assert code_of(running.append(key, noise(1))) == "internal"
    running.close()
    assert not running.alive
    assert code_of(running.append(other, noise(1))) == "internal"


def test_callbacks_may_use_the_engine(running: Engine) -> None:
    key = running.open(1).result()
    second: Future[Any] = Future()

    def follow_up(_: Future[Any]) -> None:
        running.append(key, noise(1)).add_done_callback(lambda f: second.set_result(f.result()))

    running.append(key, noise(1)).add_done_callback(follow_up)
    assert second.result(timeout=10).quantiles.shape == (1, 3, 24)


def test_many_threads(running: Engine) -> None:
    signal = noise(60)
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
    assert _end(engine.append(keys[0], noise(1))) == "draining"
    assert codes <= {None, "draining", "overloaded", "session_not_found", "rows_exhausted"}
    assert engine.stats().pending_tokens == 0 or not drain


def _anything(engine: Engine, key: int, random: np.random.Generator) -> Future[Any]:
    choice = int(random.integers(8))
    if choice < 3:
        return engine.append(key, noise(int(random.integers(1, 30))))
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
