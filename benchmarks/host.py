"""What a session costs the host: processor time of the engine around a model that computes nothing.

    python -m benchmarks.host [--sessions 1 128 1024 4096] [--channels 1 64] [--save]

Every session sends its next frame when it has the answer to its last one; all of them do so at
once. ``caller_us`` and ``engine_us`` are the two threads' processor time for a frame: submitting it
and taking its answer, and all that the device thread does. ``ticks`` says in how many batches a
round was stepped. The garbage collector is left as ``kssm serve`` leaves it.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.report import Row, finish, table
from kssm.models.base import PrefillOutput, StepOutput
from kssm.runtime import Engine, EngineConfig
from kssm.runtime.collector import relax_collector
from kssm.runtime.contract import State, StateSpec

ROUNDS = 15


class IdleForecaster:
    """Has its answers ready. Groups of up to ``rows_together`` rows need not be kept aside."""

    fingerprint = "idle"

    def __init__(self, rows: int, rows_together: int) -> None:
        self.rows_together = rows_together
        self._tail = torch.full((rows,), 0.5, dtype=torch.float64)
        self._healthy = torch.ones(rows, dtype=torch.bool)
        self._quantiles: dict[tuple[int, int], Tensor] = {}

    def state_spec(self) -> StateSpec:
        return {"state": ((4,), torch.float32)}

    def initial_state(self, rows: int) -> State:
        return {"state": torch.zeros(rows, 4)}

    def prefill(
        self, values: Tensor, state: State, lengths: Tensor | None = None, dt: Tensor | None = None
    ) -> PrefillOutput:
        raise NotImplementedError("frames of one sample are never prompts")

    def step_(
        self,
        values: Tensor,
        arena: State,  # noqa: ARG002
        slots: Tensor,  # noqa: ARG002
        dt: Tensor | None = None,  # noqa: ARG002
    ) -> StepOutput:
        rows = len(values)
        return StepOutput(self._tail[:rows], self._healthy[:rows])

    def step_together_(
        self,
        values: Tensor,
        arena: State,
        slots: Tensor,
        dt: Tensor,
        groups: Tensor,  # noqa: ARG002
    ) -> StepOutput:
        return self.step_(values, arena, slots, dt)

    def forecast_entries(self, horizon: int) -> Collection[str]:  # noqa: ARG002
        return ("state",)

    def forecast(self, state: State, horizon: int, levels: Sequence[float]) -> Tensor:
        return self.forecast_rows(state, state["state"], horizon, tuple(levels))

    def forecast_rows(
        self,
        arena: State,  # noqa: ARG002
        slots: Tensor,
        horizon: int,
        levels: tuple[float, ...],
    ) -> Tensor:
        question = (horizon, len(levels))
        if question not in self._quantiles:
            self._quantiles[question] = torch.zeros(len(self._tail), *question, dtype=torch.float64)
        return self._quantiles[question][: len(slots)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 128, 1024, 4096])
    parser.add_argument("--channels", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--save", action="store_true", help="keep the line in benchmarks/results/")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    relax_collector()
    rows = [
        measured(sessions, channels, forecast, options.seconds)
        for channels in options.channels
        for sessions in options.sessions
        if sessions * channels <= EngineConfig.max_rows
        for forecast in (False, True)
    ]
    print(table(rows))
    finish("host", torch.device("cpu"), rows, save=options.save)


def measured(sessions: int, channels: int, forecast: bool, seconds: float) -> Row:
    """Rounds of one frame for every session, for some seconds."""
    rows = sessions * channels
    config = EngineConfig(max_rows=rows, initial_rows=rows, max_pending=2 * rows + 2)
    with Engine(IdleForecaster(rows, rows_together=channels), config) as engine:
        keys = [engine.open(channels).result() for _ in range(sessions)]
        own, device = time.pthread_getcpuclockid(threading.get_ident()), _clock_of("kssm-engine")
        taken: list[list[float]] = []
        frame = np.full((1, channels), 50.0)
        before, end = engine.stats().ticks, time.perf_counter() + seconds
        while time.perf_counter() < end or len(taken) < ROUNDS:
            start = _read(own, device)
            sent = [engine.append(key, frame, want_forecast=forecast) for key in keys]
            for future in sent:
                future.result()
            del sent
            taken.append([b - a for a, b in zip(start, _read(own, device), strict=True)])
        ticks = (engine.stats().ticks - before) / len(taken)
    caller, thread, round_ = (statistics.median(part) for part in zip(*taken, strict=True))
    return {
        "sessions": sessions,
        "channels": channels,
        "forecast": forecast,
        "caller_us": 1e6 * caller / sessions,
        "engine_us": 1e6 * thread / sessions,
        "round_us": 1e6 * round_ / sessions,
        "ticks": ticks,
    }


def _clock_of(name: str) -> int:
    """The clock of a thread's processor time."""
    found = next(thread for thread in threading.enumerate() if thread.name == name)
    assert found.ident is not None
    return time.pthread_getcpuclockid(found.ident)


def _read(own: int, device: int) -> tuple[float, float, float]:
    return time.clock_gettime(own), time.clock_gettime(device), time.perf_counter()


if __name__ == "__main__":
    main()
