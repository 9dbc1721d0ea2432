"""One lane a session: its jobs run strictly one after another, in the order they came.

A job is started by a plain function, so the fast path costs no task and no lock: when the lane is
free, the frame is with the engine before the reader asks for the next message.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from kssm.errors import CapacityError
from service.errors import draining

R = TypeVar("R")
T = TypeVar("T")


class Ending(Protocol):
    """What ends once: a future of the event loop, or what arrives from another thread."""

    def add_done_callback(self, callback: Callable[[Any], object], /) -> object:
        """Have ``callback`` called on the loop, with this."""
        ...

    def result(self) -> Any:
        """What it ended with, raised if it is an error."""
        ...


@dataclass(frozen=True, slots=True)
class Started(Generic[T]):
    """A job under way. ``finish`` turns its end into the job's result (or raises)."""

    future: Ending
    finish: Callable[[Ending], T]


def in_task(work: Coroutine[Any, Any, T]) -> Started[T]:
    """A job that needs several steps and runs as a task of its own."""
    return Started(asyncio.ensure_future(work), _result)


def finished(started: Started[T]) -> asyncio.Future[T]:
    """A future of the job's result."""
    outer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    started.future.add_done_callback(lambda inner: _settle(inner, started.finish, outer))
    return outer


def at_once(result: T) -> Started[T]:
    """A job that turned out to be no work."""
    return Started(resolved(result), _result)


def resolved(result: T) -> asyncio.Future[T]:
    """A future that is already done."""
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    future.set_result(result)
    return future


def failed(error: Exception) -> asyncio.Future[Any]:
    """A future that has already failed."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    return future


class Lane:
    """A queue of at most ``limit`` waiting jobs and the one that runs."""

    __slots__ = ("_limit", "_running", "_waiting")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._running = False
        self._waiting: deque[tuple[Callable[[], Started[Any]], asyncio.Future[Any]]] = deque()

    @property
    def busy(self) -> bool:
        """Whether a job runs."""
        return self._running

    @property
    def crowded(self) -> bool:
        """Whether jobs wait behind the one that runs."""
        return bool(self._waiting)

    def run(self, start: Callable[[], Started[T]]) -> asyncio.Future[T]:
        """Run a job after those before it. Cancelling the future does not stop the job.

        The future fails with ``CapacityError`` (`overloaded`) when too many jobs wait.
        """
        if len(self._waiting) >= self._limit:
            return failed(CapacityError("too many messages of this session wait"))
        return self._enqueue(start)

    def barrier(self) -> asyncio.Future[None]:
        """Done when the jobs accepted so far are; never refused."""
        return self._enqueue(lambda: at_once(None))

    def _enqueue(self, start: Callable[[], Started[T]]) -> asyncio.Future[T]:
        outer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((start, outer))
        if not self._running:
            self._advance()
        return outer

    def _advance(self) -> None:
        while self._waiting:
            start, outer = self._waiting.popleft()
            try:
                started = start()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is this job's answer
                if not outer.done():
                    outer.set_exception(error)
                continue
            self._running = True
            started.future.add_done_callback(
                lambda inner, finish=started.finish, outer=outer: self._done(inner, finish, outer)
            )
            return

    def _done(
        self,
        inner: Ending,
        finish: Callable[[Ending], T],
        outer: asyncio.Future[T],
    ) -> None:
        self._running = False
        _settle(inner, finish, outer)
        self._advance()


def _settle(
    inner: Ending,
    finish: Callable[[Ending], T],
    outer: asyncio.Future[T],
) -> None:
    try:
        result = finish(inner)
    except asyncio.CancelledError:
        if not outer.done():
            outer.set_exception(draining())
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this job's answer
        if not outer.done():
            outer.set_exception(error)
    else:
        if not outer.done():
            outer.set_result(result)


def _result(future: Ending) -> Any:
    return future.result()
