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
from kssm.runtime.contract import Floats, Forecaster, Slots, State, StepOutput
from kssm.runtime.schedule import bucket
from kssm.runtime.transport import Pending, Transport

Progress = Callable[[int, int], None]
"""Called with the graphs captured so far and those wanted."""

_log = logging.getLogger(__name__)


def weights_of(forecaster: Forecaster) -> object | None:
    """What the forecaster's steps read; None if they cannot be captured."""
    return getattr(forecaster, "step_weights", None)


@dataclass(frozen=True, eq=False)
class _Captured:
    """A graph, its pinned inputs (values, dt, slots as float64 and int64) and outputs.

    ``kept`` owns the device memory that the graph uses: it must live as long.
    """

    graph: torch.cuda.CUDAGraph
    arena: State
    inputs: NDArray[np.float64]
    slots: NDArray[np.int64]
    uploaded: torch.cuda.Event
    tail: Tensor
    healthy: Tensor
    kept: tuple[object, ...]

    def write(self, slots: Slots, values: Floats, dt: Floats) -> None:
        """Fill the inputs, with padding behind; waits while an earlier replay may read them."""
        self.uploaded.synchronize()
        rows = len(slots)
        self.inputs[:, :rows] = values, dt
        self.slots[:rows] = slots
        self.inputs[0, rows:], self.inputs[1, rows:], self.slots[rows:] = 0.0, 1.0, -1


class StepGraphs:
    """Steps of a forecaster over an arena, for up to ``largest`` rows at once.

    Graphs hold the addresses of the arena's tensors: when the arena has grown, each is captured
    again on its next use. Owned by the device thread.
    """

    def __init__(
        self, forecaster: Forecaster, arena: Arena, transport: Transport, largest: int
    ) -> None:
        self._forecaster = forecaster
        self._arena = arena
        self._transport = transport
        self._largest = largest
        self._graphs: dict[int, _Captured] = {}
        self._pool: Any = None

    def capture(self, report: Progress | None = None) -> None:
        """Capture every graph, the largest first: it compiles what most others need too."""
        rooms = list(self._rooms())
        for done, room in enumerate(reversed(rooms)):
            if report is not None:
                report(done, len(rooms))
            self._graphs[room] = self._captured(room)
            _log.info("captured the step of %d rows (%d of %d)", room, done + 1, len(rooms))
        if report is not None:
            report(len(rooms), len(rooms))

    def step(self, slots: Slots, values: Floats, dt: Floats) -> tuple[Pending, Pending] | None:
        """(tail, healthy) of rows ``slots`` [N], longer than N.

        None for more than ``largest`` rows, or when the step can no longer be captured.
        """
        room = bucket(len(slots))
        if room > self._largest:
            return None
        captured = self._graphs.get(room)
        if captured is None or captured.arena is not self._arena.tensors:
            if weights_of(self._forecaster) is None:
                return None
            captured = self._graphs[room] = self._captured(room)
        captured.write(slots, values, dt)
        captured.graph.replay()
        captured.uploaded.record()
        return self._transport.expect(captured.tail), self._transport.expect(captured.healthy)

    def close(self) -> None:
        """Drop the graphs; the device must have finished with them."""
        self._graphs.clear()
        self._pool = None

    def _rooms(self) -> Iterator[int]:
        room = 1
        while room <= self._largest:
            yield room
            room *= 2

    def _captured(self, room: int) -> _Captured:
        """Run the step once on padding, which compiles it, then capture it."""
        host = torch.empty(3, room, dtype=torch.float64, pin_memory=True)
        host[:2], host[2].view(torch.int64)[:] = 1.0, -1
        tail = torch.empty(room, dtype=torch.float64, pin_memory=True)
        healthy = torch.empty(room, dtype=torch.bool, pin_memory=True)
        arena, device = self._arena.tensors, self._transport.device
        moved = host.to(device)
        slots = moved[2].view(torch.int64)
        weights = weights_of(self._forecaster)
        self._forecaster.step_(moved[0], arena, slots, dt=moved[1])

        def run() -> StepOutput:
            moved.copy_(host, non_blocking=True)
            output = self._forecaster.step_(moved[0], arena, slots, dt=moved[1])
            tail.copy_(output.tail, non_blocking=True)
            healthy.copy_(output.healthy, non_blocking=True)
            return output

        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = run()
        self._pool = graph.pool()
        inputs = host.numpy()
        return _Captured(
            graph,
            arena,
            inputs[:2],
            inputs[2].view(np.int64),
            torch.cuda.Event(),
            tail,
            healthy,
            (moved, output.tail, output.healthy, weights),
        )
