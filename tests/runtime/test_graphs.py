"""Steps as CUDA graphs: the numbers of the plain step, whatever the arena does in between."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kssm.forecast import SignalForecaster
from kssm.forecast.testing import tiny_forecaster
from kssm.runtime import Engine, EngineConfig
from kssm.runtime.arena import Arena
from kssm.runtime.contract import Floats, Slots
from kssm.runtime.graphs import StepGraphs
from kssm.runtime.transport import Transport

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = torch.device("cuda")
LEVELS = (0.1, 0.5, 0.9)


class Rig:
    """Graphs over an arena, and the torch step over a twin of it."""

    def __init__(self, rows: int, largest: int) -> None:
        self.model = tiny_forecaster().cuda()
        self.transport = Transport(DEVICE)
        self.arena, self.twin = (self._arena(rows) for _ in range(2))
        self.graphs = StepGraphs(self.model, self.arena, self.transport, largest)

    def _arena(self, rows: int) -> Arena:
        fresh = self.model.initial_state(1)
        return Arena(self.model.state_spec(), fresh, rows=rows, max_rows=64, device=DEVICE)

    def step(self, slots: Slots, values: Floats) -> None:
        """Step both and compare."""
        dt = np.full(len(slots), 0.75)
        pending = self.graphs.step(slots, values, dt)
        assert pending is not None
        tail, healthy = (self.transport.fetch(part)[: len(slots)] for part in pending)
        moved = [torch.from_numpy(array).cuda() for array in (values, slots, dt)]
        expected = self.model.step_torch_(moved[0], self.twin.tensors, moved[1], moved[2])
        assert healthy.all()
        np.testing.assert_allclose(tail, expected.tail.cpu().numpy(), rtol=1e-3, atol=1e-5)
        for name, entry in self.twin.tensors.items():
            torch.testing.assert_close(
                self.arena.tensors[name][1:], entry[1:], rtol=1e-4, atol=1e-4
            )


@torch.inference_mode()
def test_graphs_step_like_torch_also_when_the_arena_has_grown() -> None:
    rig = Rig(rows=4, largest=8)
    seen: list[tuple[int, int]] = []
    rig.graphs.capture(lambda done, wanted: seen.append((done, wanted)))
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    generator = np.random.default_rng(3)
    rows = rig.arena.allocate(3).slots
    np.testing.assert_array_equal(rig.twin.allocate(3).slots, rows)
    for count in (1, 3, 2, 3, 3):
        rig.step(rows[:count], generator.normal(5, 2, count))
    for arena in (rig.arena, rig.twin):
        more = arena.allocate(9).slots
    assert rig.arena.capacity > 4
    everything = np.concatenate([rows, more])
    for count in (8, 3, 5, 8):
        rig.step(everything[:count], generator.normal(5, 2, count))


@torch.inference_mode()
def test_more_rows_than_the_largest_graph_are_left_to_the_caller() -> None:
    rig = Rig(rows=16, largest=4)
    slots = rig.arena.allocate(5).slots
    assert rig.graphs.step(slots, np.ones(5), np.ones(5)) is None


def engine_of(model: SignalForecaster, **limits: int) -> Engine:
    return Engine(model, EngineConfig(initial_rows=2, **limits), DEVICE)


@pytest.mark.parametrize("thinning", [(), (2, 8)])
def test_the_engine_forecasts_the_same_with_and_without_graphs(thinning: tuple[int, ...]) -> None:
    """Some batches fit in a graph and some do not; the arena grows on the way."""
    signals = np.random.default_rng(0).normal(10, 1, (9, 20, 1))
    results: list[Floats] = []
    for largest in (1, 4, 64):
        model = tiny_forecaster(thinning=thinning).cuda()
        with engine_of(model, graph_rows=largest, prefill_min=100) as engine:
            keys = [engine.open(1).result() for _ in signals]
            futures = [
                engine.append(key, signal, horizon=20, levels=LEVELS)
                for key, signal in zip(keys, signals, strict=True)
            ]
            results.append(np.stack([future.result().quantiles for future in futures]))
    assert np.isfinite(results[0]).all()
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("thinning", [(), (2, 8)])
def test_a_tick_waits_once(thinning: tuple[int, ...]) -> None:
    with engine_of(tiny_forecaster(thinning=thinning).cuda(), graph_rows=4) as engine:
        key = engine.open(1).result()
        engine.append(key, np.ones((1, 1)), horizon=8, levels=LEVELS).result()
        transport = engine._executor._transport  # pyright: ignore[reportPrivateUsage]
        before = transport.waits, engine.stats().ticks
        for value in range(20):
            sample = np.full((1, 1), float(value))
            engine.append(key, sample, horizon=8, levels=LEVELS).result()
        assert engine.stats().ticks - before[1] == 20
        assert transport.waits - before[0] == 20


def test_a_fault_in_a_captured_batch_costs_one_session() -> None:
    with engine_of(tiny_forecaster().cuda(), graph_rows=4) as engine:
        keys = [engine.open(1).result() for _ in range(3)]
        for key in keys:
            engine.append(key, np.arange(6.0)[:, None]).result()
        state = engine.export(keys[1]).result()
        state["layers.0.state"][:] = 3e38
        engine.load(keys[1], state).result()
        futures = [engine.append(key, np.ones((1, 1)), levels=LEVELS) for key in keys]
        assert futures[1].exception() is not None
        assert np.isfinite(futures[0].result().quantiles).all()
        well, twin = (futures[i].result().quantiles for i in (0, 2))
        np.testing.assert_allclose(well, twin, rtol=1e-3)  # one row alone: other sums
        for name, entry in engine.export(keys[1]).result().items():
            np.testing.assert_array_equal(entry, state[name])
