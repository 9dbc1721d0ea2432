"""However work is cut and batched, a session's forecasts are its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kssm.runtime import Engine
from kssm.runtime.arena import Arena
from kssm.runtime.contract import Floats, Forecaster
from kssm.runtime.executor import Executor
from kssm.runtime.validation import Query
from tests.runtime.support import EXAMPLES, HORIZON, LEVELS, feed, stopped, times, wave

TOLERANCE = 1e-6


def _assert_close(actual: Floats, expected: Floats) -> None:
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE)


@EXAMPLES
@given(st.sets(st.integers(1, 119), max_size=12), st.booleans())
def test_cuts_do_not_matter(forecaster: Forecaster, cuts: set[int], irregular: bool) -> None:
    values, dt = wave(120, 2), times(120) if irregular else None
    with stopped(forecaster) as engine:
        engine.start()
        whole = feed(engine, engine.open(2).result(), values, [], dt)
        cut = feed(engine, engine.open(2).result(), values, list(cuts), dt)
    _assert_close(cut.quantiles, whole.quantiles)


def test_batched_equals_alone(forecaster: Forecaster) -> None:
    lengths = [1, 3, 5, 9, 30, 33, 64, 70]
    signals = [wave(length + 2, 1 + length % 3, seed=length) for length in lengths]
    with stopped(forecaster) as engine:
        engine.start()
        alone = [
            feed(engine, engine.open(s.shape[1]).result(), s, [len(s) - 2]).quantiles
            for s in signals
        ]
    with stopped(forecaster) as engine:
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
    series = [wave(length, seed=length)[:, 0] for length in lengths]
    dt = [None if length % 2 else times(length, length) for length in lengths]
    with stopped(forecaster) as engine:
        engine.start()
        predicted = engine.predict(series, HORIZON, LEVELS, dt).result().quantiles
        assert predicted.shape == (len(series), HORIZON, len(LEVELS))
        for samples, steps, quantiles in zip(series, dt, predicted, strict=True):
            key = engine.open(1).result()
            streamed = feed(engine, key, samples[:, None], list(range(len(samples))), steps)
            _assert_close(quantiles.T[None], streamed.quantiles)


def test_a_session_continues_bit_for_bit_wherever_its_state_goes(forecaster: Forecaster) -> None:
    values = wave(80, 2)
    with stopped(forecaster) as first, stopped(forecaster) as second:
        first.start()
        second.start()
        key = first.open(2).result()
        feed(first, key, values[:70], [5, 40])
        twin = first.fork(key).result()
        moved = second.open(2).result()
        second.append(moved, wave(9, 2, seed=5)).result()
        second.load(moved, first.export(key).result()).result()
        expected = feed(first, key, values[70:], [73])
        forked = feed(first, twin, values[70:], [73])
        loaded = feed(second, moved, values[70:], [73])
    for result in (forked, loaded):
        np.testing.assert_array_equal(result.quantiles, expected.quantiles)
        np.testing.assert_array_equal(result.tail, expected.tail)


def test_loading_copies_what_it_was_given(forecaster: Forecaster) -> None:
    with stopped(forecaster) as engine:
        key, target = engine.open(1), engine.open(1)
        engine.start()
        engine.append(key.result(), wave(20)).result()
        tensors = engine.export(key.result()).result()
        future = engine.load(target.result(), tensors)
        for array in tensors.values():
            array[:] = 0
        future.result()
        fresh = engine.export(target.result()).result()
    assert any(array.any() for array in fresh.values())


def test_a_reset_session_is_fresh(forecaster: Forecaster) -> None:
    with stopped(forecaster) as engine:
        engine.start()
        used, fresh = engine.open(2).result(), engine.open(2).result()
        engine.append(used, wave(50, 2, seed=3)).result()
        engine.reset(used).result()
        results = [feed(engine, key, wave(30, 2), [11]) for key in (used, fresh)]
    np.testing.assert_array_equal(results[0].quantiles, results[1].quantiles)
    np.testing.assert_array_equal(results[0].tail, results[1].tail)


def test_a_new_session_sees_nothing_of_its_slots_past(forecaster: Forecaster) -> None:
    with stopped(forecaster) as engine:
        engine.start()
        first = engine.open(4).result()
        expected = feed(engine, first, wave(30, 4), [11])
        engine.release(first).result()
        again = engine.open(4).result()
        result = feed(engine, again, wave(30, 4), [11])
    np.testing.assert_array_equal(result.quantiles, expected.quantiles)


def padded_executor(*arguments: Any, **options: Any) -> Executor:
    """On the CPU as on a GPU."""
    return Executor(*arguments, **{**options, "padded": True})


def test_forecasts_of_padded_batches(
    forecaster: Forecaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding reads a row that has no forecast; the answers are the sessions' own."""
    results: list[list[Floats]] = []
    for kind in (Executor, padded_executor):
        monkeypatch.setattr("kssm.runtime.engine.Executor", kind)
        with stopped(forecaster) as engine:
            engine.start()
            signals = [wave(9, seed=seed) for seed in range(3)]
            keys = [engine.open(1).result() for _ in signals]
            engine.close()
            results.append(_replay(engine, keys, signals))
    _assert_close(np.stack(results[1]), np.stack(results[0]))


@torch.inference_mode()
def test_padded_batches_give_the_same_numbers(forecaster: Forecaster) -> None:
    results: list[list[Floats]] = []
    for padded in (False, True):
        arena = Arena(forecaster.state_spec(), forecaster.initial_state(1), rows=8, max_rows=8)
        executor = Executor(forecaster, arena, torch.device("cpu"), padded=padded)
        rows, idle = arena.allocate(5), arena.allocate(2)
        untouched = arena.gather(idle.slots)
        values = wave(9, 5)
        dt = np.ones(5)
        executor.step(rows.slots, values[0], dt)
        tail, healthy = executor.step(rows.slots, values[1], dt)
        ragged = [(values[2 : 4 + row, row], np.ones(2 + row)) for row in range(5)]
        filled = executor.prefill(arena.gather(rows.slots), ragged)
        arena.write(rows.slots, filled.state)
        quantiles = executor.forecast(rows.slots, Query(HORIZON, LEVELS))
        tails = executor.fetch(filled.tail)
        prompts = [tails[row, : 2 + row] for row in range(5)]
        results.append([executor.fetch(tail)[:5], *prompts, executor.fetch(quantiles)[:5]])
        assert executor.fetch(healthy).shape == (8 if padded else 5,)
        assert filled.finite.all()
        for name, tensor in arena.gather(idle.slots).items():
            assert torch.equal(tensor, untouched[name])
    for plain, padded_result in zip(*results, strict=True):
        np.testing.assert_allclose(padded_result, plain, rtol=TOLERANCE)
