"""What the engine's tests share."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings

from kssm.errors import KSSMError
from kssm.runtime import Engine, EngineConfig, ForecastResult
from kssm.runtime.contract import Floats, Forecaster
from kssm.runtime.jobs import Session

CONFIG = EngineConfig(
    max_rows=64, initial_rows=2, prefill_tokens=64, chunk_tokens=16, prefill_min=8, max_pending=500
)
State = dict[str, np.ndarray[Any, Any]]
NUMERIC_CONFIG = EngineConfig(
    max_rows=512, initial_rows=4, prefill_tokens=256, chunk_tokens=32, prefill_min=8
)
LEVELS = (0.1, 0.5, 0.9)
HORIZON = 20
EXAMPLES = settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def noise(samples: int, channels: int = 1, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=(samples, channels))


def code_of(future: Future[Any]) -> str:
    error = future.exception(timeout=10)
    assert isinstance(error, KSSMError), error
    return error.code


def state_of(engine: Engine, key: int) -> State:
    return engine.export(key).result()


@contextmanager
def held(engine: Engine) -> Generator[None]:
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


def assert_same(left: State, right: State) -> None:
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])


@contextmanager
def stopped(forecaster: Forecaster) -> Generator[Engine]:
    """An engine that the block may start, or drive tick by tick through its worker."""
    engine = Engine(forecaster, NUMERIC_CONFIG)
    try:
        yield engine
    finally:
        engine.close(drain=False)


def wave(samples: int, channels: int = 1, seed: int = 0) -> Floats:
    random = np.random.default_rng(seed)
    curve = np.sin(np.arange(samples) / 5.0)[:, None] + 0.3 * random.normal(
        size=(samples, channels)
    )
    curve[random.random(curve.shape) < 0.1] = np.nan
    curve[0] = 0.5
    return 50.0 + 10.0 * curve


def times(samples: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).choice([0.3, 1.0, 2.5, 9.0, 21.0], size=samples)


def feed(
    engine: Engine, key: int, values: Floats, cuts: Sequence[int], dt: Floats | None = None
) -> ForecastResult:
    bounds = [0, *sorted(cuts), len(values)]
    futures = [
        engine.append(
            key,
            values[a:b],
            dt=None if dt is None else dt[a:b],
            horizon=HORIZON,
            levels=LEVELS,
        )
        for a, b in pairwise(bounds)
        if b > a
    ]
    return futures[-1].result()
