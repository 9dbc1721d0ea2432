"""Rows of many jobs in one batch."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from kssm.runtime.arena import Rows
from kssm.runtime.jobs import Read, Session
from kssm.runtime.layout import Layout
from kssm.runtime.validation import Query


def jobs(*counts: int) -> list[Read]:
    bounds = np.cumsum([0, *counts])
    slots = [np.arange(a, b) + 1 for a, b in pairwise(bounds.tolist())]
    sessions = [Session(key, Rows(own, np.zeros_like(own))) for key, own in enumerate(slots)]
    return [Read(session=session, query=Query(1, (0.5,))) for session in sessions]


def test_rows_lie_job_after_job() -> None:
    layout = Layout.of(jobs(2, 1, 3))
    assert layout.slots.tolist() == [1, 2, 3, 4, 5, 6]
    assert list(layout.spans()) == [(0, 2), (2, 3), (3, 6)]
    assert layout.numbers().tolist() == [0, 0, 1, 2, 2, 2]
    assert layout.spread([0.5, 1.0, 2.0]).tolist() == [0.5, 0.5, 1.0, 2.0, 2.0, 2.0]


def test_jobs_of_one_row_each() -> None:
    layout = Layout.of(jobs(1, 1))
    assert list(layout.spans()) == [(0, 1), (1, 2)]
    assert layout.numbers().tolist() == [0, 1]
    assert layout.spread([True, False]).tolist() == [True, False]
