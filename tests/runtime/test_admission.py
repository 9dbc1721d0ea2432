"""Bounded admission."""

from __future__ import annotations

import pytest

from kssm.errors import CapacityError
from kssm.runtime.admission import Admission, Lane


def test_a_lane_refuses_what_does_not_fit_until_room_is_made() -> None:
    admission = Admission(10)
    admission.admit(Lane.STREAM, 6)
    admission.admit(Lane.STREAM, 4)
    with pytest.raises(CapacityError, match="waiting") as refused:
        admission.admit(Lane.STREAM, 1)
    assert refused.value.code == "overloaded"
    assert refused.value.retryable
    admission.settle(Lane.STREAM, 4)
    admission.admit(Lane.STREAM, 4)
    assert admission.pending == 10


def test_bulk_work_does_not_shut_the_streams_out() -> None:
    admission = Admission(10)
    admission.admit(Lane.BULK, 1000)
    admission.admit(Lane.STREAM, 10)
    with pytest.raises(CapacityError):
        admission.admit(Lane.BULK, 1)


def test_an_idle_lane_takes_any_size_and_free_jobs_always_pass() -> None:
    admission = Admission(10)
    admission.admit(Lane.STREAM, 500)
    admission.admit(Lane.STREAM, 0)
    with pytest.raises(CapacityError):
        admission.admit(Lane.STREAM, 1)
