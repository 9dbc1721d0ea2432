"""One stream of frames of the asyncio client."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Sequence,
)
from typing import Any, cast

import numpy.typing as npt

from kssm_client.core import DEFAULT_WINDOW, ClientCore
from kssm_client.types import Forecast, SessionInfo, Timestamp

Expect = Callable[[int], "asyncio.Future[Any]"]
Frames = AsyncIterable[npt.ArrayLike] | Iterable[npt.ArrayLike]


class AsyncSession:
    """One stream of frames. Made by ``AsyncClient.create_session`` and ``attach_session``."""

    def __init__(self, core: ClientCore, key: int, info: SessionInfo, expect: Expect) -> None:
        self._core = core
        self._key = key
        self._expect = expect
        self.info = info

    @property
    def id(self) -> str:
        """The server's name of the session, good for attaching again later."""
        return self.info.session

    async def send(
        self, values: npt.ArrayLike, timestamps: Sequence[Timestamp] | None = None
    ) -> Forecast:
        """Send one frame and return the forecast after it.

        ``values``: [samples, channels], or one sample of every channel, or for one channel a
        run of samples; None or NaN = missing. Raises ServerError when the server refuses this
        frame; the session goes on.
        """
        return await self.submit(values, timestamps)

    def submit(
        self, values: npt.ArrayLike, timestamps: Sequence[Timestamp] | None = None
    ) -> asyncio.Future[Forecast]:
        """Queue one frame at once; the future has its forecast. Order is kept."""
        ticket = self._core.append(self._key, values, timestamps)
        return cast("asyncio.Future[Forecast]", self._expect(ticket))

    async def stream(
        self, frames: Frames, *, window: int = DEFAULT_WINDOW
    ) -> AsyncGenerator[Forecast, None]:
        """Send every frame of an iterable, up to ``window`` ahead; yield forecasts in order.

        An iterable that is not asynchronous is read in a thread, so it may block.
        """
        queue: asyncio.Queue[asyncio.Future[Forecast] | None] = asyncio.Queue(window)
        feeder = asyncio.create_task(self._feed(frames, queue))
        try:
            while (pending := await queue.get()) is not None:
                yield await pending
        finally:
            feeder.cancel()
            await asyncio.gather(feeder, return_exceptions=True)

    async def _feed(
        self, frames: Frames, queue: asyncio.Queue[asyncio.Future[Forecast] | None]
    ) -> None:
        try:
            async for values in as_async(frames):
                await queue.put(self.submit(values))
        except Exception as error:  # noqa: BLE001 - it belongs to the stream's reader
            failure: asyncio.Future[Forecast] = asyncio.get_running_loop().create_future()
            failure.set_exception(error)
            await queue.put(failure)
        else:
            await queue.put(None)

    async def forecast(
        self, horizon: int | None = None, quantiles: Sequence[float] | None = None
    ) -> Forecast:
        """A forecast after the frames sent so far, at another horizon or other quantiles."""
        levels = None if quantiles is None else list(quantiles)
        result = await self._control("forecast.create", horizon=horizon, quantiles=levels)
        return cast("Forecast", result)

    async def reset(self) -> None:
        """Forget the history; the settings and the numbering go on."""
        await self._control("session.reset")

    async def close(self) -> None:
        """Delete the session on the server."""
        await self._control("session.close")

    async def _control(self, kind: str, **fields: object) -> Forecast | SessionInfo | None:
        ticket = self._core.control(self._key, kind, **fields)
        return await self._expect(ticket)


async def as_async(frames: Frames) -> AsyncIterator[npt.ArrayLike]:
    """Any iterable as an asynchronous one; a plain one is read in a thread."""
    if isinstance(frames, AsyncIterable):
        async for values in frames:
            yield values
        return
    iterator = iter(frames)
    end = object()
    while (values := await asyncio.to_thread(next, iterator, end)) is not end:
        yield cast("npt.ArrayLike", values)
