"""Where the rows of many jobs lie in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from kssm.runtime.contract import Slots
from kssm.runtime.jobs import SessionJob

J = TypeVar("J", bound=SessionJob)


class Layout(NamedTuple, Generic[J]):
    """The rows of ``jobs``, ``counts`` of each, one job after another.

    ``slots`` [rows] are their places in the arena.
    """

    jobs: Sequence[J]
    slots: Slots
    counts: Sequence[int]

    @classmethod
    def of(cls, jobs: Sequence[J]) -> Layout[J]:
        """The layout of at least one job."""
        sessions = [job.session for job in jobs]
        slots = np.concatenate([session.rows.slots for session in sessions])
        return cls(jobs, slots, [session.channels for session in sessions])

    def spans(self) -> Iterator[tuple[int, int]]:
        """Each job's rows: (start, stop)."""
        return pairwise(accumulate(self.counts, initial=0))

    def numbers(self) -> Slots:
        """Each row's job: [rows] from 0 on."""
        return self.spread(range(len(self.jobs)))

    def spread(self, numbers: Sequence[Any]) -> NDArray[Any]:
        """One number a job as one a row."""
        each = np.array(numbers)
        return each if len(each) == len(self.slots) else np.repeat(each, self.counts)
