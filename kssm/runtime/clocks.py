"""How many samples rows have consumed, known on the host without asking the device.

A forecaster may have work that is due at every k-th sample of a row only. Which rows are due
follows from their clocks, and those move with the steps that the host itself has queued.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kssm.runtime.arena import Arena
from kssm.runtime.contract import Floats, Forecaster, Slots, State, StepOutput

CLOCK = "clock"
"""The state entry [rows, 1] that counts a row's samples."""


class FollowUp(Protocol):
    """Work of rows whose clock is a multiple of ``period`` after a step."""

    @property
    def period(self) -> int: ...

    @property
    def run(self) -> Callable[[State, Tensor, Tensor], None]:
        """Takes the arena, slots [N] (-1 = padding) and their clocks [N] float64.

        A row whose clock is another than the host believes is left alone.
        """
        ...

    @property
    def entries(self) -> Collection[str]:
        """State entries that change at no other time."""
        ...


class Clocked(Forecaster, Protocol):
    """A forecaster whose step is a part for every sample and follow-ups for some."""

    @property
    def follow_ups(self) -> Sequence[FollowUp]:
        """In the order in which they come."""
        ...

    def step_row_(
        self, values: Tensor, arena: State, slots: Tensor, dt: Tensor | None = None
    ) -> StepOutput:
        """The part for every sample."""
        ...


class Due(NamedTuple):
    """Rows for which the ``number``-th follow-up is due, and their clocks."""

    number: int
    slots: Slots
    clocks: Floats


def clocked(forecaster: Forecaster) -> Clocked | None:
    """The forecaster as one with follow-ups; None if it has none."""
    return cast("Clocked", forecaster) if hasattr(forecaster, "follow_ups") else None


class Clocks:
    """The clocks of an arena's rows; owned by the device thread.

    ``fetch`` brings a tensor to the host: it is called for rows whose state was replaced.
    """

    def __init__(
        self,
        arena: Arena,
        periods: Sequence[int],
        fetch: Callable[[Tensor], NDArray[Any]],
    ) -> None:
        self._arena = arena
        self._periods = tuple(periods)
        self._common = math.gcd(*periods)
        self._fetch = fetch
        self._counts = np.zeros(arena.max_rows + 1, dtype=np.int64)

    def coming(self, slots: Slots) -> NDArray[np.int64]:
        """What the clocks of ``slots`` [N] will be after their next step."""
        replaced = self._arena.take_replaced(slots)
        if len(replaced):
            self._counts[replaced] = self._fetch(self._arena.gather(replaced, [CLOCK])[CLOCK])[:, 0]
        return self._counts[slots] + 1

    def advance(self, slots: Slots) -> list[Due]:
        """Count the next step of ``slots`` [N], not yet queued; what follows it, in order."""
        counts = self.coming(slots)
        self._counts[slots] = counts
        rows = counts % self._common == 0
        slots, clocks = slots[rows], counts[rows]
        due = [(number, clocks % period == 0) for number, period in enumerate(self._periods)]
        return [
            Due(number, slots[rows], clocks[rows].astype(np.float64))
            for number, rows in due
            if rows.any()
        ]
