"""A process for what may end it."""

from __future__ import annotations

import os
import time

import pytest

from benchmarks.processes import LostError, Worker


def test_a_call_that_ends_the_process_is_reported_and_the_next_one_runs() -> None:
    with Worker() as worker:
        assert worker.call(divmod, 7, 2) == (3, 1)
        first = worker.call(os.getpid)
        with pytest.raises(LostError, match="ended its process"):
            worker.call(os.abort)
        assert worker.call(divmod, 9, 2) == (4, 1)
        assert first != worker.call(os.getpid) != os.getpid()


def test_errors_come_back_as_they_are() -> None:
    with Worker() as worker, pytest.raises(ZeroDivisionError):
        worker.call(divmod, 1, 0)


def test_a_call_that_takes_too_long_is_ended() -> None:
    with Worker(limit_s=5.0) as worker:
        with pytest.raises(LostError, match="no answer in 5 s"):
            worker.call(time.sleep, 60.0)
        assert worker.call(divmod, 7, 2) == (3, 1)
