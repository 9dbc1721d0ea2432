"""Bounded admission: how many tokens may wait in the engine."""

from __future__ import annotations

import threading
from enum import IntEnum

from kssm.errors import CapacityError


class Lane(IntEnum):
    """Two queues with a bound each, so that batch work never shuts the streams out."""

    STREAM = 0
    BULK = 1


class Admission:
    """Counts the waiting tokens of each lane; thread-safe.

    A lane takes a job while its tokens fit ``limit``; an idle lane takes a job of any size, and a
    job without cost is always taken.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pending = [0, 0]
        self._lock = threading.Lock()

    @property
    def pending(self) -> int:
        """Tokens accepted and not settled."""
        return sum(self._pending)

    def admit(self, lane: Lane, cost: int) -> None:
        """CapacityError ``overloaded`` when the lane is full."""
        with self._lock:
            waiting = self._pending[lane]
            if waiting and cost and waiting + cost > self._limit:
                raise CapacityError(f"{waiting} tokens are waiting already", code="overloaded")
            self._pending[lane] = waiting + cost

    def settle(self, lane: Lane, cost: int) -> None:
        """Give back the tokens of finished jobs."""
        with self._lock:
            self._pending[lane] -= cost
