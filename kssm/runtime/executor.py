"""Runs the forecaster over arena rows: the one place where numpy meets the device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kssm.language.sampling import Sampling
from kssm.runtime.arena import Arena
from kssm.runtime.clocks import CLOCK, Clocks, Due, clocked
from kssm.runtime.contract import (
    Floats,
    Forecaster,
    KeepingModel,
    Slots,
    State,
    StepOutput,
    TokenModel,
)
from kssm.runtime.graphs import Progress, StepGraphs, weights_of
from kssm.runtime.schedule import bucket
from kssm.runtime.transport import Pending, Transport
from kssm.runtime.validation import Query

_log = logging.getLogger(__name__)

_FEW = 16

_FINE = 4096
"""Larger batches are padded to its multiples: twice as many rows would cost twice the time."""


class Prefilled(NamedTuple):
    """Rows after a chunk: ``tail`` [B, T] on the device, NaN = no score; ``finite`` [B] bool."""

    state: State
    tail: Tensor
    finite: NDArray[np.bool_]


class Executor:
    """Batches of numpy rows in, results out; owned by the device thread.

    ``step`` and ``forecast`` queue work without waiting for the device; ``fetch`` and ``prefill``
    wait. ``padded`` rounds batch sizes up to powers of two, so that a device that prepares work by
    size sees few sizes. Steps of up to ``graph_rows`` rows are CUDA graphs where the forecaster's
    steps can be captured.
    """

    def __init__(
        self,
        forecaster: Forecaster,
        arena: Arena,
        device: torch.device,
        *,
        padded: bool,
        graph_rows: int = 0,
    ) -> None:
        self._forecaster = forecaster
        self._device = device
        self._padded = padded
        self._transport = Transport(device)
        self._graphs: StepGraphs | None = None
        self._clocks: Clocks | None = None
        self._clocked = clocked(forecaster)
        follow_ups = () if self._clocked is None else tuple(self._clocked.follow_ups)
        self._seldom = [(follow_up.period, follow_up.entries) for follow_up in follow_ups]
        if follow_ups and device.type == "cuda":
            self._clocks = Clocks(arena, [period for period, _ in self._seldom], self.fetch)
        if device.type == "cuda" and graph_rows and weights_of(forecaster) is not None:
            self._graphs = StepGraphs(forecaster, arena, self._transport, graph_rows)
        self.arena = arena

    @property
    def rows_together(self) -> int:
        """The most rows of a group that ``step`` itself keeps as it was if one of them fails."""
        return getattr(self._forecaster, "rows_together", 0)

    def prepare(self, report: Progress | None = None) -> None:
        """Compile and capture ahead of the first step; ``report`` hears of the progress.

        Steps that cannot be captured run one kernel after the other.
        """
        if self._graphs is None:
            return
        try:
            self._graphs.capture(report)
            if hasattr(self._forecaster, "forecast_rows"):
                self.forecast(np.zeros(1, dtype=np.int64), Query(1, (0.5,)))  # compiles the reading
        except Exception:  # noqa: BLE001 (of CUDA or of a compiler: the service goes on without)
            _log.exception("the steps could not be captured")
            self._graphs = None

    def close(self) -> None:
        """Give the captured graphs' memory back."""
        if self._graphs is not None:
            self._graphs.close()

    def keep(self, slots: Slots, *, once: bool) -> Callable[[], State]:
        """Rows ``slots`` as they are, to be put back by ``arena.write``.

        ``once``: until the next call, and only what the rows' next step may change.
        """
        if not once:
            return self.arena.keep(slots)
        return self.arena.keep(slots, self._changing(slots), briefly=True)

    def _changing(self, slots: Slots) -> Collection[str] | None:
        """The entries that the next step of ``slots`` may change; None = all.

        Few rows are copied sooner than that is found out.
        """
        if not self._seldom or len(slots) <= _FEW:
            return None
        if self._clocks is not None:
            clocks = self._clocks.coming(slots)
        elif self._device.type == "cpu":
            clocks = self.arena.tensors[CLOCK].numpy()[slots, 0] + 1
        else:
            return None
        resting: set[str] = set()
        for period, entries in self._seldom:
            if (clocks % period > 0).all():
                resting.update(entries)
        return self.arena.tensors.keys() - resting

    def step(
        self,
        slots: Slots,
        values: Floats,
        dt: Floats,
        groups: Callable[[], Slots] | None = None,
    ) -> tuple[Pending, Pending]:
        """Advance rows ``slots`` [N] by one token each: (tail, healthy), maybe longer than N.

        ``groups`` is asked for [N]: equal for neighbours that are to go on together or not at all,
        which ``rows_together`` of them do.
        """
        due = [] if self._clocks is None else self._clocks.advance(slots)
        stepped = None if self._graphs is None else self._graphs.step(slots, values, dt)
        if stepped is None:
            output = self._together(slots, values, dt, groups) or self._step(slots, values, dt)
            queue = self._transport.download
            stepped = queue(output.tail), queue(output.healthy)
        for follow_up in due:
            self._follow(follow_up)
        return stepped

    def _together(
        self, slots: Slots, values: Floats, dt: Floats, groups: Callable[[], Slots] | None
    ) -> StepOutput | None:
        if groups is None or not self.rows_together:
            return None
        arrays = (values, slots, dt, groups())
        own, index, steps, together = (torch.from_numpy(array) for array in arrays)
        model = cast("KeepingModel", self._forecaster)
        return model.step_together_(own, self.arena.tensors, index, steps, together)

    def _step(self, slots: Slots, values: Floats, dt: Floats) -> StepOutput:
        moved_values, moved_dt, moved_slots = self._staged(slots, values, dt)
        model = None if self._clocks is None else self._clocked
        step = self._forecaster.step_ if model is None else model.step_row_
        return step(moved_values, self.arena.tensors, moved_slots.to(torch.int64), dt=moved_dt)

    def _follow(self, due: Due) -> None:
        """Queue a follow-up of the step."""
        if self._graphs is not None and self._graphs.follow(due):
            return
        assert self._clocked is not None
        clocks, _, slots = self._staged(due.slots, due.clocks, np.ones(len(due.slots)))
        follow_up = self._clocked.follow_ups[due.number]
        follow_up.run(self.arena.tensors, slots.to(torch.int64), clocks)

    def _staged(self, slots: Slots, first: Floats, second: Floats) -> Tensor:
        """[3, room] on the device: two numbers a row and the slots, -1 behind."""
        rows = len(slots)
        staged = np.empty((3, self._room(rows)))  # slots are small whole numbers: exact in float64
        staged[:, rows:] = [[0.0], [1.0], [-1.0]]
        staged[0, :rows], staged[1, :rows], staged[2, :rows] = first, second, slots
        return self._to_device(staged)

    def draw(
        self,
        slots: Slots,
        rules: Sequence[Sampling],
        uniform: Floats,
        drawn: Sequence[Sequence[int]],
    ) -> Slots:
        """The next tokens [N] of rows ``slots`` [N] of a language model; waits for the device."""
        model = cast("TokenModel", self._forecaster)
        moved = self._to_device(slots), self._to_device(uniform)
        return self.fetch(model.draw(self.arena.tensors, moved[0], rules, moved[1], drawn))

    def forecast(self, slots: Slots, query: Query) -> Pending:
        """Quantiles [B', horizon, Q] of rows ``slots`` [B], B' >= B."""
        in_place = getattr(self._forecaster, "forecast_rows", None)
        if in_place is not None:
            index = self.arena.index(slots)
            read = in_place(self.arena.tensors, index, query.horizon, query.levels)
            if read is not None:
                return self._transport.download(read)
        padding = np.zeros(self._room(len(slots)) - len(slots), dtype=np.int64)
        names = self._forecaster.forecast_entries(query.horizon)
        state = self.arena.gather(np.concatenate([slots, padding]), names)
        return self._transport.download(
            self._forecaster.forecast(state, query.horizon, query.levels)
        )

    def forecast_state(self, state: State, query: Query) -> Floats:
        """Quantiles [B, horizon, Q] of rows outside the arena."""
        return self.fetch(self._forecaster.forecast(state, query.horizon, query.levels))

    def prefill(self, state: State, rows: Sequence[tuple[Floats, Floats]]) -> Prefilled:
        """Consume each row's (values [t], dt [t]) from ``state`` [B, ...]; t may differ."""
        lengths = np.array([len(values) for values, _ in rows])
        width = self._room(int(lengths.max()))
        values, dt = np.full((len(rows), width), np.nan), np.ones((len(rows), width))
        for row, (row_values, row_dt) in enumerate(rows):
            values[row, : len(row_values)] = row_values
            dt[row, : len(row_dt)] = row_dt
        ragged = None if (lengths == width).all() else self._to_device(lengths)
        output = self._forecaster.prefill(
            self._to_device(values), state, lengths=ragged, dt=self._to_device(dt)
        )
        return Prefilled(output.state, output.tail, self.fetch(finite_rows(output.state)))

    def initial_state(self, rows: int) -> State:
        """A fresh state of ``rows`` rows outside the arena."""
        state = self._forecaster.initial_state(rows)
        return {name: tensor.to(self._device) for name, tensor in state.items()}

    def stage(self, arrays: Mapping[str, NDArray[Any]]) -> State:
        """Host arrays as a session's state: the model's entries on the device."""
        kept = self.arena.host
        return {
            name: torch.from_numpy(array) if name in kept else self._to_device(array)
            for name, array in arrays.items()
        }

    def fetch(self, result: Tensor | Pending) -> NDArray[Any]:
        """Values on the host, once the device has them: one wait serves all that is pending."""
        pending = self._transport.download(result) if isinstance(result, Tensor) else result
        return self._transport.fetch(pending)

    def _room(self, count: int) -> int:
        if not self._padded:
            return count
        return bucket(count) if count <= _FINE else -(-count // _FINE) * _FINE

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        return self._transport.upload(array)


def finite_rows(state: State) -> Tensor:
    """Which rows are finite in every entry: [B] bool."""
    checks = [tensor.isfinite().reshape(len(tensor), -1).all(1) for tensor in state.values()]
    return torch.stack(checks).all(0)


def join(states: Sequence[State]) -> State:
    """States one below the other."""
    if len(states) == 1:
        return states[0]
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}
