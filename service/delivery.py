"""From the engine's thread to the event loop: results arrive in batches, as they are made."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

T = TypeVar("T")

logger = logging.getLogger("kssm.service")


class Arrival(Generic[T]):
    """A future of another thread, for one who waits for it on the event loop."""

    __slots__ = ("_callback", "_source")

    def __init__(self, source: Future[T]) -> None:
        self._source = source
        self._callback: Callable[[Arrival[T]], object] | None = None

    def add_done_callback(self, callback: Callable[[Arrival[T]], object], /) -> None:
        """Have ``callback`` called on the loop when the future has ended; there is only one."""
        assert self._callback is None
        self._callback = callback

    def result(self) -> T:
        """What the future ended with, raised if it is an error."""
        if self._source.cancelled():
            raise asyncio.CancelledError
        return self._source.result()

    def tell(self) -> None:
        """Call whoever waits."""
        if self._callback is not None:
            self._callback(self)


class Delivery:
    """Futures of another thread for one event loop, which is woken once for many of them.

    ``asyncio.wrap_future`` wakes the loop, a system call, for every future, and takes two of the
    loop's turns to tell who waits.
    """

    def __init__(self) -> None:
        self._arrived: deque[Arrival[Any]] = deque()
        self._woken = False

    def expect(self, source: Future[T]) -> Arrival[T]:
        """What ends on the running loop as ``source`` does."""
        loop, arrival = asyncio.get_running_loop(), Arrival(source)
        source.add_done_callback(lambda _: self._arrive(arrival, loop))
        return arrival

    def _arrive(self, arrival: Arrival[Any], loop: asyncio.AbstractEventLoop) -> None:
        """Runs wherever the future was settled."""
        self._arrived.append(arrival)
        if not self._woken and not loop.is_closed():
            self._woken = True
            loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False  # first: whoever comes from here on wakes the loop again
        while self._arrived:
            try:
                self._arrived.popleft().tell()
            except Exception:
                logger.exception("nobody could be told of a result")
