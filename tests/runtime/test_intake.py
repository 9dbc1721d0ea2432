"""Where jobs wait for the device thread."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from kssm.errors import CapacityError, InvalidInputError, KSSMError, NotFoundError
from kssm.runtime.admission import Lane
from kssm.runtime.arena import Rows
from kssm.runtime.intake import Intake
from kssm.runtime.jobs import Control, Open, Release, Session


def session(key: int = 1) -> Session:
    return Session(key, Rows(np.array([key]), np.array([0])))


def opening(cost: int = 1) -> Open:
    return Open(channels=1, cost=cost)


def refusal(future: Future[Any]) -> str:
    error = future.exception(timeout=0)
    assert isinstance(error, KSSMError)
    return error.code


def test_jobs_are_taken_in_the_order_in_which_they_came() -> None:
    intake = Intake(max_pending=10)
    jobs = [opening() for _ in range(3)]
    futures = [intake.submit(lambda job=job: job) for job in jobs]
    assert futures == [job.future for job in jobs]
    assert intake.take(busy=False) == jobs
    assert intake.take(busy=True) == []


def test_what_a_request_raises_comes_through_the_future() -> None:
    def request() -> Open:
        raise InvalidInputError("bad", code="wrong_shape")

    intake = Intake(max_pending=10)
    assert refusal(intake.submit(request)) == "wrong_shape"
    assert intake.take(busy=True) == []


def test_a_refused_job_gives_its_room_back() -> None:
    intake = Intake(max_pending=4)
    assert not intake.submit(lambda: opening(3)).done()
    assert refusal(intake.submit(lambda: opening(2))) == "overloaded"
    stranger = Control(session=session(), action=lambda _: None)
    assert refusal(intake.submit(lambda: stranger)) == "session_not_found"
    assert intake.admission.pending == 3
    intake.admission.settle(Lane.STREAM, 3)
    assert intake.admission.pending == 0


def test_nothing_follows_a_release() -> None:
    intake, own = Intake(max_pending=10), session()
    intake.sessions[own.key] = own
    assert intake.session(own.key) is own
    release = Release(session=own, action=lambda _: None, cost=0)
    assert not intake.submit(lambda: release).done()
    later = Control(session=own, action=lambda _: None)
    assert refusal(intake.submit(lambda: later)) == "session_not_found"
    with pytest.raises(NotFoundError):
        intake.session(own.key)


def test_the_thread_sleeps_until_there_is_a_job() -> None:
    intake, taken = Intake(max_pending=1000), list[object]()

    def work() -> None:
        while len(taken) < 200:
            taken.extend(intake.take(busy=False) or ())

    thread = threading.Thread(target=work)
    thread.start()
    jobs = [opening() for _ in range(200)]
    for job in jobs:
        intake.submit(lambda job=job: job)
    thread.join(10)
    assert taken == jobs


@pytest.mark.parametrize("drain", [True, False])
def test_a_closed_intake_refuses_and_empties(drain: bool) -> None:
    intake, job = Intake(max_pending=10), opening()
    intake.submit(lambda: job)
    intake.close(drain)
    assert intake.closed
    assert refusal(intake.submit(opening)) == "draining"
    if drain:
        assert intake.take(busy=False) == [job]
        intake.accepted()
        assert intake.take(busy=True) == []  # earlier jobs are still under way
    assert intake.take(busy=False) is None
    assert intake.abandon() == ([] if drain else [job])


def test_jobs_that_nobody_accepted_are_handed_out() -> None:
    intake, first, second = Intake(max_pending=10), opening(), opening()
    intake.submit(lambda: first)
    intake.take(busy=False)
    intake.submit(lambda: second)
    assert intake.abandon() == [first, second]
    assert intake.abandon() == []
    assert isinstance(intake.refusal(), CapacityError)
    intake.died = True
    assert refusal(intake.submit(opening)) == "internal"
