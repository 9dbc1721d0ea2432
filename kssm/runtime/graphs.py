"""The step as CUDA graphs: one for each power of two of rows, upload and download included.

A graph replays the kernels of a step with one launch. It reads its inputs from pinned memory of
its own and leaves its outputs in such memory, so a tick is: write the inputs, replay, wait.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kssm.runtime.arena import Arena
from kssm.runtime.clocks import Due, clocked
from kssm.runtime.contract import Floats, Forecaster, Slots, State
from kssm.runtime.schedule import bucket
from kssm.runtime.transport import Pending, Transport

Progress = Callable[[int, int], None]
"""Called with the graphs captured so far and those wanted."""

_log = logging.getLogger(__name__)

_STEP = -1
"""The part of a step that every sample needs; the others are the follow-ups' numbers."""


def weights_of(forecaster: Forecaster) -> object | None:
    """What the forecaster's steps read; None if they cannot be captured."""
    return getattr(forecaster, "step_weights", None)


@dataclass(frozen=True, eq=False)
class _Captured:
    """A graph, its pinned inputs (two numbers a row and its slot) and outputs, if it has any.

    ``kept`` owns the device memory that the graph uses: it must live as long.
    """

    graph: torch.cuda.CUDAGraph
    arena: State
    inputs: NDArray[np.float64]
    slots: NDArray[np.int64]
    uploaded: torch.cuda.Event
    outputs: tuple[Tensor, ...]
    kept: tuple[object, ...]

    def replay(self, slots: Slots, first: Floats, second: Floats) -> None:
        """Run on these inputs; waits while an earlier replay may read its own."""
        self.uploaded.synchronize()
        rows = len(slots)
        self.inputs[:, :rows] = first, second
        self.slots[:rows] = slots
        self.inputs[0, rows:], self.inputs[1, rows:], self.slots[rows:] = 0.0, 1.0, -1
        self.graph.replay()
        self.uploaded.record()


class StepGraphs:
    """Steps of a forecaster over an arena, for up to ``largest`` rows at once.

    Graphs hold the addresses of the arena's tensors: when the arena has grown, each is captured
    again on its next use. A forecaster's follow-ups are graphs of their own. Owned by the device
    thread.
    """

    def __init__(
        self, forecaster: Forecaster, arena: Arena, transport: Transport, largest: int
    ) -> None:
        self._forecaster = forecaster
        self._arena = arena
        self._transport = transport
        self._largest = largest
        model = clocked(forecaster)
        self._step_ = forecaster.step_ if model is None else model.step_row_
        self._follow_ups = () if model is None else tuple(model.follow_ups)
        self._graphs: dict[tuple[int, int], _Captured] = {}
        self._pool: Any = None

    def capture(self, report: Progress | None = None) -> None:
        """Capture every graph, the largest first: it compiles what most others need too."""
        parts = range(_STEP, len(self._follow_ups))
        wanted = [(part, room) for room in reversed(list(self._rooms())) for part in parts]
        for done, (part, room) in enumerate(wanted):
            if report is not None:
                report(done, len(wanted))
            self._graphs[part, room] = self._captured(part, room)
            _log.info("captured a step of %d rows (%d of %d)", room, done + 1, len(wanted))
        if report is not None:
            report(len(wanted), len(wanted))

    def step(self, slots: Slots, values: Floats, dt: Floats) -> tuple[Pending, Pending] | None:
        """(tail, healthy) of rows ``slots`` [N], longer than N.

        None for more than ``largest`` rows, or when the step can no longer be captured.
        """
        captured = self._find(_STEP, len(slots))
        if captured is None:
            return None
        captured.replay(slots, values, dt)
        tail, healthy = captured.outputs
        return self._transport.expect(tail), self._transport.expect(healthy)

    def follow(self, due: Due) -> bool:
        """Run a follow-up; False where ``step`` would give None."""
        captured = self._find(due.number, len(due.slots))
        if captured is not None:
            captured.replay(due.slots, due.clocks, np.ones(len(due.slots)))
        return captured is not None

    def close(self) -> None:
        """Drop the graphs; the device must have finished with them."""
        self._graphs.clear()
        self._pool = None

    def _rooms(self) -> Iterator[int]:
        room = 1
        while room <= self._largest:
            yield room
            room *= 2

    def _find(self, part: int, rows: int) -> _Captured | None:
        room = bucket(rows)
        if room > self._largest:
            return None
        captured = self._graphs.get((part, room))
        if captured is None or captured.arena is not self._arena.tensors:
            if weights_of(self._forecaster) is None:
                return None
            captured = self._graphs[part, room] = self._captured(part, room)
        return captured

    def _captured(self, part: int, room: int) -> _Captured:
        """Run a part of the step once on padding, which compiles it, then capture it."""
        host = torch.empty(3, room, dtype=torch.float64, pin_memory=True)
        host[:2], host[2].view(torch.int64)[:] = 1.0, -1
        arena, device = self._arena.tensors, self._transport.device
        moved = host.to(device)
        slots = moved[2].view(torch.int64)
        weights = weights_of(self._forecaster)

        def work() -> tuple[Tensor, ...]:
            if part == _STEP:
                output = self._step_(moved[0], arena, slots, dt=moved[1])
                return output.tail, output.healthy
            self._follow_ups[part].run(arena, slots, moved[0])
            return ()

        outputs = tuple(_pinned_like(result) for result in work())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            moved.copy_(host, non_blocking=True)
            results = work()
            for output, result in zip(outputs, results, strict=True):
                output.copy_(result, non_blocking=True)
        self._pool = graph.pool()
        inputs, event = host.numpy(), torch.cuda.Event()
        kept = (moved, *results, weights)
        places = inputs[2].view(np.int64)
        return _Captured(graph, arena, inputs[:2], places, event, outputs, kept)


def _pinned_like(result: Tensor) -> Tensor:
    return torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
