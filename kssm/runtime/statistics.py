"""What the engine counts about itself, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kssm.runtime.arena import Arena
from kssm.runtime.schedule import bucket

RECENT = 2048


@dataclass(frozen=True)
class EngineStats:
    """A snapshot of the engine's counters; times in milliseconds, of the most recent steps."""

    sessions: int
    rows_used: int
    rows_total: int
    rows_max: int
    arena_bytes: int
    pending_tokens: int
    ticks: int
    tokens_stepped: int
    tokens_prefilled: int
    forecasts: int
    faults: int
    quarantined: int
    batch_sizes: dict[int, int]
    step_ms: dict[str, float]


class Recorder:
    """Counters written by the device thread and read by any other."""

    def __init__(self) -> None:
        self.sessions = 0
        self.ticks = 0
        self.tokens_stepped = 0
        self.tokens_prefilled = 0
        self.forecasts = 0
        self.faults = 0
        self.quarantined = 0
        self._batches: dict[int, int] = {1 << power: 0 for power in range(32)}
        self._steps = np.zeros(RECENT)
        self._stepped = 0

    def step(self, rows: int, seconds: float) -> None:
        """One batched step of ``rows`` rows took ``seconds``."""
        self.tokens_stepped += rows
        self._batches[bucket(rows)] += 1
        self._steps[self._stepped % RECENT] = seconds
        self._stepped += 1

    def stats(self, arena: Arena, pending: int) -> EngineStats:
        """The counters now. ``batch_sizes`` maps an upper bound (a power of two) to steps."""
        return EngineStats(
            sessions=self.sessions,
            rows_used=arena.used,
            rows_total=arena.capacity,
            rows_max=arena.max_rows,
            arena_bytes=arena.nbytes,
            pending_tokens=pending,
            ticks=self.ticks,
            tokens_stepped=self.tokens_stepped,
            tokens_prefilled=self.tokens_prefilled,
            forecasts=self.forecasts,
            faults=self.faults,
            quarantined=self.quarantined,
            batch_sizes={size: count for size, count in self._batches.items() if count},
            step_ms=self._percentiles(),
        )

    def _percentiles(self) -> dict[str, float]:
        recent = self._steps[: min(self._stepped, RECENT)]
        if not len(recent):
            return {}
        names = ("p50", "p90", "p99")
        return dict(zip(names, (1e3 * np.percentile(recent, [50, 90, 99])).tolist(), strict=True))
