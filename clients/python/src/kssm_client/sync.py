"""The same client for code without asyncio: a loop in a thread, no logic of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy.typing as npt

from kssm_client.address import DEFAULT_URL
from kssm_client.aio import AsyncClient
from kssm_client.backoff import Backoff
from kssm_client.core import DEFAULT_WINDOW
from kssm_client.errors import ClientClosedError
from kssm_client.session import AsyncSession
from kssm_client.types import Encoding, Forecast, SessionInfo, Timestamp

T = TypeVar("T")


class _Loop:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="kssm-client", daemon=True
        )
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it there, wait here; ClientClosedError once the loop is closed."""
        if self._loop.is_closed():
            work.close()
            raise ClientClosedError("the client was closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        self.run(self._loop.shutdown_asyncgens())
        self.run(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Session:
    """One stream of frames; see ``AsyncSession`` for what each call means."""

    def __init__(self, loop: _Loop, session: AsyncSession) -> None:
        self._loop = loop
        self._session = session

    @property
    def id(self) -> str:
        """The server's name of the session."""
        return self._session.id

    @property
    def info(self) -> SessionInfo:
        """The session's settings."""
        return self._session.info

    def send(
        self, values: npt.ArrayLike, timestamps: Sequence[Timestamp] | None = None
    ) -> Forecast:
        """Send one frame and return the forecast after it."""
        return self._loop.run(self._session.send(values, timestamps))

    def stream(
        self, frames: Iterable[npt.ArrayLike], *, window: int = DEFAULT_WINDOW
    ) -> Iterator[Forecast]:
        """Send every frame, up to ``window`` ahead; yield forecasts in order."""
        forecasts = self._session.stream(frames, window=window)
        try:
            while (forecast := self._loop.run(_next(forecasts))) is not None:
                yield forecast
        finally:
            self._loop.run(_close(forecasts))

    def forecast(
        self, horizon: int | None = None, quantiles: Sequence[float] | None = None
    ) -> Forecast:
        """A forecast after the frames sent so far, at another horizon or other quantiles."""
        return self._loop.run(self._session.forecast(horizon, quantiles))

    def reset(self) -> None:
        """Forget the history; the settings and the numbering go on."""
        self._loop.run(self._session.reset())

    def close(self) -> None:
        """Delete the session on the server."""
        self._loop.run(self._session.close())


class Client:
    """A connection that comes back by itself; see ``AsyncClient``. Use as ``with``."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        window: int = DEFAULT_WINDOW,
        backoff: Backoff | None = None,
    ) -> None:
        self._client = AsyncClient(url, api_key=api_key, window=window, backoff=backoff)
        self._loop: _Loop | None = None

    def __enter__(self) -> Self:
        loop = _Loop()
        try:
            loop.run(self._client.__aenter__())
        except BaseException:
            loop.close()
            raise
        self._loop = loop
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def create_session(
        self,
        *,
        channels: int = 1,
        horizon: int = 24,
        quantiles: Sequence[float] = (0.1, 0.5, 0.9),
        model: str | None = None,
        sample_interval: float | None = None,
        prompt: npt.ArrayLike | None = None,
        timestamps: Sequence[Timestamp] | None = None,
        encoding: Encoding = "binary",
    ) -> Session:
        """Open a session; see ``AsyncClient.create_session``."""
        loop = self._running()
        opening = self._client.create_session(
            channels=channels,
            horizon=horizon,
            quantiles=quantiles,
            model=model,
            sample_interval=sample_interval,
            prompt=prompt,
            timestamps=timestamps,
            encoding=encoding,
        )
        return Session(loop, loop.run(opening))

    def attach_session(self, session_id: str, *, encoding: Encoding | None = "binary") -> Session:
        """Go on with a session that exists; whoever held it before loses it."""
        loop = self._running()
        return Session(loop, loop.run(self._client.attach_session(session_id, encoding=encoding)))

    def close(self) -> None:
        """Close the connection. Sessions stay on the server; unanswered calls fail."""
        if self._loop is not None:
            self._loop.run(self._client.close())
            self._loop.close()
            self._loop = None

    def _running(self) -> _Loop:
        if self._loop is None:
            raise RuntimeError("use the client in a with statement")
        return self._loop


def connect(
    url: str = DEFAULT_URL,
    *,
    api_key: str | None = None,
    window: int = DEFAULT_WINDOW,
    backoff: Backoff | None = None,
) -> Client:
    """A client for ``with``; http, https, ws and wss addresses are understood."""
    return Client(url, api_key=api_key, window=window, backoff=backoff)


async def _next(forecasts: AsyncGenerator[Forecast, None]) -> Forecast | None:
    return await anext(forecasts, None)


async def _close(forecasts: AsyncGenerator[Forecast, None]) -> None:
    await forecasts.aclose()
