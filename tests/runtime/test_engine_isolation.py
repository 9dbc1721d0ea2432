"""What one session sends or holds never changes another by a bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kssm.errors import KSSMError, NumericalError
from kssm.runtime import Engine, ForecastResult
from kssm.runtime.contract import Floats, Forecaster
from tests.runtime.support import EXAMPLES, HORIZON, LEVELS, stopped, wave

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
    with stopped(forecaster) as engine:
        engine.start()
        keys = [engine.open(2).result() for _ in range(3)]
        engine.close()
        with torch.inference_mode():
            for number, (name, samples) in enumerate(blocks):
                results += _round(engine, keys, NUMBERS[name] if poisoned else 1.0, samples, number)
    return results


def _round(engine: Engine, keys: list[int], value: float, samples: int, seed: int) -> list[Floats]:
    signals = [wave(samples, 2, seed + 10 * place) for place in range(3)]
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
@pytest.mark.parametrize("channels", [1, 3])
def test_a_rotten_row_harms_nobody_else(
    forecaster: Forecaster, samples: int, rotten: float, channels: int
) -> None:
    """The other rows of its own session stay as they were."""
    runs: list[list[ForecastResult]] = []
    for spoil in (False, True):
        with stopped(forecaster) as engine:
            engine.start()
            keys = [engine.open(channels).result() for _ in range(3)]
            for seed, key in enumerate(keys):
                engine.append(key, wave(20, channels, seed=seed)).result()
            engine.close()
            runs.append(_spoilt_round(engine, keys, samples, rotten if spoil else None))
    for clean, dirty in zip(*runs, strict=True):
        np.testing.assert_array_equal(dirty.quantiles, clean.quantiles)
        np.testing.assert_array_equal(dirty.tail, clean.tail)
        np.testing.assert_array_equal(dirty.surprise, clean.surprise)


@torch.inference_mode()
def _spoilt_round(
    engine: Engine, keys: list[int], samples: int, rotten: float | None
) -> list[ForecastResult]:
    arena, session = engine._worker._arena, engine._sessions[keys[1]]
    if rotten is not None:
        for tensor in arena.tensors.values():
            tensor[int(session.rows.slots[-1])] = rotten
    before = arena.whole(session.rows.slots)
    jobs = [
        engine._requests.append(
            engine._sessions[key],
            wave(samples, session.channels, seed=9),
            None,
            (HORIZON, LEVELS),
        )
        for key in keys
    ]
    engine._worker.accept(jobs)
    while engine._worker.busy:
        engine._worker.tick()
    if rotten is not None:
        assert isinstance(jobs[1].future.exception(), NumericalError)
        assert session.quarantined
        for name, tensor in arena.whole(session.rows.slots).items():
            torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)
        engine._worker.reset(session)
        assert not session.quarantined
        assert not engine._worker.stats().quarantined
    return [jobs[0].future.result(), jobs[2].future.result()]


def test_reading_a_rotten_row_is_a_fault(forecaster: Forecaster) -> None:
    with stopped(forecaster) as engine:
        engine.start()
        key = engine.open(1).result()
        engine.append(key, wave(20)).result()
        slots = engine._sessions[key].rows.slots
        with torch.inference_mode():
            for tensor in engine._worker._arena.tensors.values():
                tensor[int(slots[0])] = torch.nan
        fault = engine.forecast(key, HORIZON, LEVELS).exception()
    assert isinstance(fault, NumericalError)
