"""Results of another thread on the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import Future
from typing import Any

import pytest

from kssm.errors import InvalidInputError
from service.delivery import Delivery


def ended(delivery: Delivery, source: Future[int]) -> asyncio.Future[int]:
    """What a lane makes of an arrival."""
    outer: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def settle(arrival: Any) -> None:
        try:
            outer.set_result(arrival.result())
        except asyncio.CancelledError:
            outer.cancel()
        except InvalidInputError as error:
            outer.set_exception(error)

    delivery.expect(source).add_done_callback(settle)
    return outer


async def test_futures_end_as_their_sources_do():
    delivery, sources = Delivery(), [Future[int]() for _ in range(4)]
    ends = [ended(delivery, source) for source in sources]
    sources[0].set_result(7)
    sources[1].set_exception(InvalidInputError("bad", code="wrong_shape"))
    sources[2].cancel()
    assert await ends[0] == 7
    with pytest.raises(InvalidInputError):
        await ends[1]
    with pytest.raises(asyncio.CancelledError):
        await ends[2]
    assert not ends[3].done()


async def test_a_source_that_has_ended_already_arrives_later():
    delivery, source = Delivery(), Future[int]()
    source.set_result(1)
    end = ended(delivery, source)
    assert not end.done()
    assert await end == 1


async def test_results_that_come_together_wake_the_loop_once(monkeypatch: pytest.MonkeyPatch):
    loop, woken = asyncio.get_running_loop(), list[object]()
    wake = loop.call_soon_threadsafe
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda call: woken.append(1) or wake(call))
    delivery, sources = Delivery(), [Future[int]() for _ in range(50)]
    ends = [ended(delivery, source) for source in sources]
    for number, source in enumerate(sources):  # the loop has no turn in between
        source.set_result(number)
    assert await asyncio.gather(*ends) == list(range(50))
    assert len(woken) == 1


async def test_nothing_is_lost_between_threads():
    delivery, count = Delivery(), 3000
    sources: list[Future[int]] = [Future() for _ in range(count)]
    ends = [ended(delivery, source) for source in sources]

    def settle(first: int) -> None:
        for number in range(first, count, 3):
            sources[number].set_result(number)

    threads = [threading.Thread(target=settle, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    async with asyncio.timeout(30):
        assert await asyncio.gather(*ends) == list(range(count))
    for thread in threads:
        thread.join()


async def test_a_listener_that_fails_costs_nobody_else_a_result(caplog: pytest.LogCaptureFixture):
    delivery, sources = Delivery(), [Future[int]() for _ in range(3)]

    def fail(_: object) -> None:
        raise ZeroDivisionError

    delivery.expect(sources[0])  # nobody waits for this one
    delivery.expect(sources[1]).add_done_callback(fail)
    end = ended(delivery, sources[2])
    for source in sources:
        source.set_result(1)
    with caplog.at_level(logging.ERROR):
        assert await end == 1
    assert "nobody could be told" in caplog.text


def test_a_closed_loop_is_left_in_peace():
    delivery, source = Delivery(), Future[Any]()

    async def wait() -> None:
        delivery.expect(source)

    asyncio.run(wait())
    source.set_result(None)
    assert source.done()
