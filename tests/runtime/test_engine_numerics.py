"""The engine's numbers: however work is cut and batched, a session's forecasts are its own."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kssm.errors import KSSMError, NumericalError
from kssm.runtime import Engine, EngineConfig, ForecastResult
from kssm.runtime.arena import Arena
from kssm.runtime.contract import Floats, Forecaster
from kssm.runtime.executor import Executor
from kssm.runtime.validation import Query

CONFIG = EngineConfig(
    max_rows=512, initial_rows=4, prefill_tokens=256, chunk_tokens=32, prefill_min=8
)
LEVELS = (0.1, 0.5, 0.9)
HORIZON = 20
TOLERANCE = 1e-6
EXAMPLES = settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@contextmanager
def _engine(forecaster: Forecaster) -> Generator[Engine]:
    """An engine that gets what is submitted in the block's first part as one batch."""
    engine = Engine(forecaster, CONFIG)
    try:
        yield engine
    finally:
        engine.close(drain=False)


def _signal(samples: int, channels: int = 1, seed: int = 0) -> Floats:
    random = np.random.default_rng(seed)
    wave = np.sin(np.arange(samples) / 5.0)[:, None] + 0.3 * random.normal(size=(samples, channels))
    wave[random.random(wave.shape) < 0.1] = np.nan
    wave[0] = 0.5
    return 50.0 + 10.0 * wave


def _times(samples: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).choice([0.3, 1.0, 2.5, 9.0, 21.0], size=samples)


def _feed(
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


def _assert_close(actual: Floats, expected: Floats) -> None:
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE)


@EXAMPLES
@given(st.sets(st.integers(1, 119), max_size=12), st.booleans())
def test_cuts_do_not_matter(forecaster: Forecaster, cuts: set[int], irregular: bool) -> None:
    values, dt = _signal(120, 2), _times(120) if irregular else None
    with _engine(forecaster) as engine:
        engine.start()
        whole = _feed(engine, engine.open(2).result(), values, [], dt)
        cut = _feed(engine, engine.open(2).result(), values, list(cuts), dt)
    _assert_close(cut.quantiles, whole.quantiles)


def test_batched_equals_alone(forecaster: Forecaster) -> None:
    lengths = [1, 3, 5, 9, 30, 33, 64, 70]
    signals = [_signal(length + 2, 1 + length % 3, seed=length) for length in lengths]
    with _engine(forecaster) as engine:
        engine.start()
        alone = [
            _feed(engine, engine.open(s.shape[1]).result(), s, [len(s) - 2]).quantiles
            for s in signals
        ]
    with _engine(forecaster) as engine:
        engine.start()
        keys = [engine.open(s.shape[1]).result() for s in signals]
        engine.close()
        together = _replay(engine, keys, signals)
    for quantiles, expected in zip(together, alone, strict=True):
        _assert_close(quantiles, expected)


@torch.inference_mode()
def _replay(engine: Engine, keys: list[int], signals: list[Floats]) -> list[Floats]:
    """Run all signals' first parts in one batch, then their last two samples, without a thread."""
    worker = engine._worker
    for part in (slice(None, -2), slice(-2, None)):
        jobs = [
            engine._requests.append(engine._sessions[key], s[part], None, (HORIZON, LEVELS))
            for key, s in zip(keys, signals, strict=True)
        ]
        worker.accept(jobs)
        while worker.busy:
            worker.tick()
    return [job.future.result().quantiles for job in jobs]


def test_predictions_equal_streaming(forecaster: Forecaster) -> None:
    lengths = [1, 2, 7, 31, 32, 33, 100, 170, 171, 60]
    series = [_signal(length, seed=length)[:, 0] for length in lengths]
    dt = [None if length % 2 else _times(length, length) for length in lengths]
    with _engine(forecaster) as engine:
        engine.start()
        predicted = engine.predict(series, HORIZON, LEVELS, dt).result()
        assert predicted.shape == (len(series), HORIZON, len(LEVELS))
        for samples, steps, quantiles in zip(series, dt, predicted, strict=True):
            key = engine.open(1).result()
            streamed = _feed(engine, key, samples[:, None], list(range(len(samples))), steps)
            _assert_close(quantiles.T[None], streamed.quantiles)


def test_a_session_continues_bit_for_bit_wherever_its_state_goes(forecaster: Forecaster) -> None:
    values = _signal(80, 2)
    with _engine(forecaster) as first, _engine(forecaster) as second:
        first.start()
        second.start()
        key = first.open(2).result()
        _feed(first, key, values[:70], [5, 40])
        twin = first.fork(key).result()
        moved = second.open(2).result()
        second.append(moved, _signal(9, 2, seed=5)).result()
        second.load(moved, first.export(key).result()).result()
        expected = _feed(first, key, values[70:], [73])
        forked = _feed(first, twin, values[70:], [73])
        loaded = _feed(second, moved, values[70:], [73])
    for result in (forked, loaded):
        np.testing.assert_array_equal(result.quantiles, expected.quantiles)
        np.testing.assert_array_equal(result.tail, expected.tail)


def test_loading_copies_what_it_was_given(forecaster: Forecaster) -> None:
    with _engine(forecaster) as engine:
        key, target = engine.open(1), engine.open(1)
        engine.start()
        engine.append(key.result(), _signal(20)).result()
        tensors = engine.export(key.result()).result()
        future = engine.load(target.result(), tensors)
        for array in tensors.values():
            array[:] = 0
        future.result()
        fresh = engine.export(target.result()).result()
    assert any(array.any() for array in fresh.values())


def test_a_reset_session_is_fresh(forecaster: Forecaster) -> None:
    with _engine(forecaster) as engine:
        engine.start()
        used, fresh = engine.open(2).result(), engine.open(2).result()
        engine.append(used, _signal(50, 2, seed=3)).result()
        engine.reset(used).result()
        results = [_feed(engine, key, _signal(30, 2), [11]) for key in (used, fresh)]
    np.testing.assert_array_equal(results[0].quantiles, results[1].quantiles)
    np.testing.assert_array_equal(results[0].tail, results[1].tail)


def test_a_new_session_sees_nothing_of_its_slots_past(forecaster: Forecaster) -> None:
    with _engine(forecaster) as engine:
        engine.start()
        first = engine.open(4).result()
        expected = _feed(engine, first, _signal(30, 4), [11])
        engine.release(first).result()
        again = engine.open(4).result()
        result = _feed(engine, again, _signal(30, 4), [11])
    np.testing.assert_array_equal(result.quantiles, expected.quantiles)


Disturb = Callable[[Engine, int], None]
Block = tuple[str, int]
POISONS = st.lists(
    st.tuples(st.sampled_from(["nan", "inf", "huge", "zero", "spike"]), st.integers(1, 12)),
    min_size=1,
    max_size=6,
)
NUMBERS = {"nan": np.nan, "inf": np.inf, "huge": 1e30, "zero": 0.0, "spike": -1e12}


def _neighbours(forecaster: Forecaster, blocks: list[Block], poisoned: bool) -> list[Floats]:
    """Forecasts and scores of two good sessions that share every batch with a third."""
    results: list[Floats] = []
    with _engine(forecaster) as engine:
        engine.start()
        keys = [engine.open(2).result() for _ in range(3)]
        engine.close()
        with torch.inference_mode():
            for number, (name, samples) in enumerate(blocks):
                results += _round(engine, keys, NUMBERS[name] if poisoned else 1.0, samples, number)
    return results


def _round(engine: Engine, keys: list[int], value: float, samples: int, seed: int) -> list[Floats]:
    signals = [_signal(samples, 2, seed + 10 * place) for place in range(3)]
    signals[1] = np.where(np.isinf(value), 3.0, value) * np.ones((samples, 2))
    jobs = [
        engine._requests.append(engine._sessions[key], signal, None, (HORIZON, LEVELS))
        for key, signal in zip(keys, signals, strict=True)
    ]
    if np.isinf(value):  # refused at the door, as the second half of what came at once
        with pytest.raises(KSSMError):
            engine._requests.append(engine._sessions[keys[1]], signals[1] * np.inf, None, None)
    engine._worker.accept(jobs)
    while engine._worker.busy:
        engine._worker.tick()
    good = [jobs[0].future.result(), jobs[2].future.result()]
    jobs[1].future.result()
    return [array for result in good for array in (result.quantiles, result.tail)]


@EXAMPLES
@given(POISONS)
def test_poisonous_samples_do_not_change_a_neighbour_by_a_bit(
    forecaster: Forecaster, blocks: list[Block]
) -> None:
    clean = _neighbours(forecaster, blocks, poisoned=False)
    dirty = _neighbours(forecaster, blocks, poisoned=True)
    for expected, actual in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("samples", [1, 3, 40], ids=["step", "steps", "chunks"])
@pytest.mark.parametrize("rotten", [np.nan, np.inf])
def test_a_rotten_row_harms_nobody_else(
    forecaster: Forecaster, samples: int, rotten: float
) -> None:
    runs: list[list[ForecastResult]] = []
    for spoil in (False, True):
        with _engine(forecaster) as engine:
            engine.start()
            keys = [engine.open(1).result() for _ in range(3)]
            for seed, key in enumerate(keys):
                engine.append(key, _signal(20, seed=seed)).result()
            engine.close()
            runs.append(_spoilt_round(engine, keys, samples, rotten if spoil else None))
    for clean, dirty in zip(*runs, strict=True):
        np.testing.assert_array_equal(dirty.quantiles, clean.quantiles)
        np.testing.assert_array_equal(dirty.tail, clean.tail)


@torch.inference_mode()
def _spoilt_round(
    engine: Engine, keys: list[int], samples: int, rotten: float | None
) -> list[ForecastResult]:
    arena, session = engine._worker._arena, engine._sessions[keys[1]]
    if rotten is not None:
        for tensor in arena.tensors.values():
            tensor[int(session.rows.slots[0])] = rotten
    before = arena.gather(session.rows.slots)
    jobs = [
        engine._requests.append(
            engine._sessions[key], _signal(samples, seed=9), None, (HORIZON, LEVELS)
        )
        for key in keys
    ]
    engine._worker.accept(jobs)
    while engine._worker.busy:
        engine._worker.tick()
    if rotten is not None:
        assert isinstance(jobs[1].future.exception(), NumericalError)
        assert session.quarantined
        for name, tensor in arena.gather(session.rows.slots).items():
            torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)
        engine._worker.reset(session)
        assert not session.quarantined
        assert not engine._worker.stats().quarantined
    return [jobs[0].future.result(), jobs[2].future.result()]


def test_reading_a_rotten_row_is_a_fault(forecaster: Forecaster) -> None:
    with _engine(forecaster) as engine:
        engine.start()
        key = engine.open(1).result()
        engine.append(key, _signal(20)).result()
        slots = engine._sessions[key].rows.slots
        with torch.inference_mode():
            for tensor in engine._worker._arena.tensors.values():
                tensor[int(slots[0])] = torch.nan
        fault = engine.forecast(key, HORIZON, LEVELS).exception()
    assert isinstance(fault, NumericalError)


@torch.inference_mode()
def test_padded_batches_give_the_same_numbers(forecaster: Forecaster) -> None:
    results: list[list[Floats]] = []
    for padded in (False, True):
        arena = Arena(forecaster.state_spec(), forecaster.initial_state(1), rows=8, max_rows=8)
        executor = Executor(forecaster, arena, torch.device("cpu"), padded=padded)
        rows, idle = arena.allocate(5), arena.allocate(2)
        untouched = arena.gather(idle.slots)
        values = _signal(9, 5)
        dt = np.ones(5)
        stepped = executor.step(rows.slots, values[0], dt)
        stepped = executor.step(rows.slots, values[1], dt)
        ragged = [(values[2 : 4 + row, row], np.ones(2 + row)) for row in range(5)]
        filled = executor.prefill(arena.gather(rows.slots), ragged)
        arena.write(rows.slots, filled.state)
        quantiles = executor.forecast(rows.slots, Query(HORIZON, LEVELS))
        results.append([executor.fetch(stepped.tail)[:5], filled.tail, quantiles.numpy()[:5]])
        assert executor.fetch(stepped.healthy).shape == (8 if padded else 5,)
        assert filled.finite.all()
        for name, tensor in arena.gather(idle.slots).items():
            assert torch.equal(tensor, untouched[name])
    for plain, padded_result in zip(*results, strict=True):
        np.testing.assert_allclose(padded_result, plain, rtol=TOLERANCE)
