from __future__ import annotations

import asyncio

import pytest

from kssm.errors import CapacityError
from service.lanes import Lane, Started, at_once, in_task


class Jobs:
    """Starts jobs that finish when told to and records what happened."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.futures: dict[str, asyncio.Future[str]] = {}

    def job(self, name: str):
        def start() -> Started[str]:
            self.log.append(f"start {name}")
            self.futures[name] = asyncio.get_running_loop().create_future()
            return Started(self.futures[name], self._finish)

        return start

    def _finish(self, future: asyncio.Future[str]) -> str:
        self.log.append(f"finish {future.result()}")
        return future.result().upper()


async def test_jobs_run_one_after_another():
    lane, jobs = Lane(10), Jobs()
    first, second = lane.run(jobs.job("a")), lane.run(jobs.job("b"))
    assert jobs.log == ["start a"]
    assert lane.busy
    assert lane.crowded
    jobs.futures["a"].set_result("a")
    assert await first == "A"
    assert jobs.log == ["start a", "finish a", "start b"]
    jobs.futures["b"].set_result("b")
    assert await second == "B"
    assert not lane.busy


async def test_an_error_is_its_jobs_alone():
    lane, jobs = Lane(10), Jobs()

    def broken() -> Started[None]:
        raise ValueError("at start")

    failing, early, good = lane.run(jobs.job("a")), lane.run(broken), lane.run(lambda: at_once(5))
    jobs.futures["a"].set_exception(KeyError("later"))
    with pytest.raises(KeyError):
        await failing
    with pytest.raises(ValueError, match="at start"):
        await early
    assert await good == 5


async def test_jobs_are_done_though_nobody_waits():
    lane, jobs = Lane(10), Jobs()

    def broken() -> Started[None]:
        raise ValueError("at start")

    lane.run(jobs.job("a")).cancel()
    lane.run(broken).cancel()
    lane.run(jobs.job("b")).cancel()
    last = lane.run(lambda: at_once("c"))
    jobs.futures["a"].set_result("a")
    await asyncio.sleep(0)
    jobs.futures["b"].set_exception(ValueError("later"))
    assert await last == "c"
    assert jobs.log == ["start a", "finish a", "start b"]


async def test_a_full_lane_refuses():
    lane, jobs = Lane(1), Jobs()
    running, waiting = lane.run(jobs.job("a")), lane.run(lambda: at_once("b"))
    with pytest.raises(CapacityError) as caught:
        await lane.run(lambda: at_once("c"))
    assert caught.value.code == "overloaded"
    jobs.futures["a"].set_result("a")
    assert [await running, await waiting] == ["A", "b"]


async def test_work_of_several_steps():
    async def work() -> int:
        await asyncio.sleep(0)
        return 7

    lane = Lane(1)
    assert await lane.run(lambda: in_task(work())) == 7


async def test_a_cancelled_job_says_that_the_server_stops():
    lane, jobs = Lane(1), Jobs()
    outer = lane.run(jobs.job("a"))
    jobs.futures["a"].cancel()
    with pytest.raises(CapacityError) as caught:
        await outer
    assert caught.value.code == "draining"
