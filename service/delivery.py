"""From the engine's thread to the event loop: results arrive in batches, as they are made."""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


class Delivery:
    """Futures of another thread for one event loop, which is woken once for many of them.

    ``asyncio.wrap_future`` wakes the loop, a system call, for every future.
    """

    def __init__(self) -> None:
        self._arrived: deque[tuple[asyncio.Future[Any], Future[Any]]] = deque()
        self._woken = False

    def wrap(self, source: Future[T]) -> asyncio.Future[T]:
        """A future of the running loop that ends as ``source`` does.

        Cancelling it does not cancel ``source``.
        """
        loop = asyncio.get_running_loop()
        target: asyncio.Future[T] = loop.create_future()
        source.add_done_callback(partial(self._arrive, target, loop))
        return target

    def _arrive(
        self, target: asyncio.Future[T], loop: asyncio.AbstractEventLoop, source: Future[T]
    ) -> None:
        """Runs wherever ``source`` was settled."""
        self._arrived.append((target, source))
        if not self._woken and not loop.is_closed():
            self._woken = True
            loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False  # first: whoever comes from here on wakes the loop again
        while self._arrived:
            target, source = self._arrived.popleft()
            if not target.done():
                _copy(source, target)


def _copy(source: Future[T], target: asyncio.Future[T]) -> None:
    if source.cancelled():
        target.cancel()
    elif (error := source.exception()) is not None:
        target.set_exception(error)
    else:
        target.set_result(source.result())
