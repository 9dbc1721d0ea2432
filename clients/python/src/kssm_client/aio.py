"""The asyncio client: a shell around ``ClientCore`` that owns the socket and the waiting."""

from __future__ import annotations

import asyncio
from collections.abc import (
    Awaitable,
    Callable,
    Sequence,
)
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from kssm_client.address import DEFAULT_URL, parse_address
from kssm_client.backoff import Backoff
from kssm_client.core import DEFAULT_WINDOW, ClientCore
from kssm_client.errors import (
    ClientClosedError,
    ConnectionFailedError,
    KSSMClientError,
    TooLargeError,
    UnauthorizedError,
)
from kssm_client.events import Draining, Event, Failed, RetryLater, Succeeded
from kssm_client.session import AsyncSession
from kssm_client.types import Encoding, SessionOptions, Timestamp
from kssm_client.wire import as_samples

Sleep = Callable[[float], Awaitable[None]]

_CLOSE_UNAUTHORIZED = 1008
_CLOSE_TOO_BIG = 1009
_MAX_REPLY_BYTES = 64 << 20


class AsyncClient:
    """A connection that comes back by itself, with many sessions on it.

    Use as ``async with``. ``backoff`` rules both reconnecting and repeating what the server
    refused for now; ``sleep`` is its clock.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        window: int = DEFAULT_WINDOW,
        backoff: Backoff | None = None,
        sleep: Sleep = asyncio.sleep,
        open_timeout: float = 10.0,
    ) -> None:
        self._core = ClientCore(window)
        self._stream_url = parse_address(url).stream
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._backoff = backoff or Backoff()
        self._sleep = sleep
        self._open_timeout = open_timeout
        self._futures: dict[int, asyncio.Future[Any]] = {}
        self._wake = asyncio.Event()
        self._timers: set[asyncio.Task[None]] = set()
        self._runner: asyncio.Task[None] | None = None
        self._end: KSSMClientError | None = None
        self._attempt = 0  # connections in a row without a single message
        self.reconnections = 0

    async def __aenter__(self) -> Self:
        socket = await self._open()
        self._runner = asyncio.create_task(self._run(socket))
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def create_session(
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
    ) -> AsyncSession:
        """Open a session. ``prompt`` is history [samples, channels] of at most 1 MiB as JSON;
        ``sample_interval`` (s) gives timestamps their unit; ``encoding`` is that of frames and
        forecasts: float32 messages or JSON.
        """
        options = SessionOptions(
            channels=channels,
            horizon=horizon,
            quantiles=tuple(quantiles),
            model=model,
            sample_interval=sample_interval,
            encoding=encoding,
            prompt=None if prompt is None else as_samples(prompt, channels),
            timestamps=None if timestamps is None else tuple(timestamps),
        )
        return await self._opened(*self._core.create(options))

    async def attach_session(
        self, session_id: str, *, encoding: Encoding | None = "binary"
    ) -> AsyncSession:
        """Go on with a session that exists; whoever held it before loses it."""
        return await self._opened(*self._core.attach(session_id, encoding))

    async def close(self) -> None:
        """Close the connection. Sessions stay on the server; unanswered calls fail."""
        self._stop(ClientClosedError("the client was closed"))
        tasks = [*self._timers, *([self._runner] if self._runner else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _expect(self, ticket: int) -> asyncio.Future[Any]:
        """The future of a ticket the core has just given out."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.add_done_callback(_mark_retrieved)
        self._futures[ticket] = future
        if self._end is not None:
            self._handle(self._core.fail_all(self._end))
        self._wake.set()
        return future

    async def _opened(self, key: int, ticket: int) -> AsyncSession:
        return AsyncSession(self._core, key, await self._expect(ticket), self._expect)

    async def _open(self) -> ClientConnection:
        try:
            return await open_socket(
                self._stream_url,
                additional_headers=self._headers,
                open_timeout=self._open_timeout,
                max_size=_MAX_REPLY_BYTES,
                compression=None,
            )
        except InvalidStatus as error:
            status = error.response.status_code
            if status in (401, 403):
                raise UnauthorizedError(f"the server refused the API key ({status})") from error
            raise ConnectionFailedError(f"the server answered with status {status}") from error
        except (OSError, TimeoutError, WebSocketException) as error:
            raise ConnectionFailedError(f"cannot reach {self._stream_url}: {error}") from error

    async def _run(self, socket: ClientConnection) -> None:
        """Serve one connection after the other until none can be had."""
        try:
            while True:
                await self._serve(socket)
                socket = await self._reopen()
                self.reconnections += 1
        except KSSMClientError as error:
            self._stop(error)
        except Exception as error:  # noqa: BLE001 - a mistake of ours: nobody may wait for ever
            self._stop(KSSMClientError(f"the client failed: {error!r}"))

    async def _serve(self, socket: ClientConnection) -> None:
        """One connection's life; returns when it should be replaced, raises when it cannot."""
        self._core.connected()
        self._wake.set()
        writer = asyncio.create_task(self._write(socket))
        try:
            async for message in socket:
                self._attempt = 0
                self._handle(self._core.receive(message))
                self._wake.set()
                if self._core.drained:
                    break
        except ConnectionClosed:
            pass
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            await socket.close()
            self._core.disconnected()
        self._judge_close(socket.close_code)

    def _judge_close(self, code: int | None) -> None:
        if code == _CLOSE_UNAUTHORIZED:
            raise UnauthorizedError("the server closed the connection: API key not valid")
        if code == _CLOSE_TOO_BIG:
            error = TooLargeError("the server closed the connection: a message was too large")
            self._handle(self._core.fail_all(error))

    async def _write(self, socket: ClientConnection) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                for message in self._core.outgoing():
                    await socket.send(message)
        except ConnectionClosed:
            pass
        except Exception as error:  # noqa: BLE001 - a mistake of ours: nobody may wait for ever
            self._stop(KSSMClientError(f"the client failed: {error!r}"))

    async def _reopen(self) -> ClientConnection:
        while True:
            self._attempt += 1
            await self._sleep(self._backoff.delay(self._attempt))
            try:
                return await self._open()
            except ConnectionFailedError:
                if self._attempt >= self._backoff.attempts:
                    raise

    def _handle(self, events: Sequence[Event]) -> None:
        for event in events:
            match event:
                case Succeeded(ticket, result):
                    self._settle(ticket, result, None)
                case Failed(ticket, error):
                    self._settle(ticket, None, error)
                case RetryLater():
                    self._schedule(event)
                case Draining():
                    pass

    def _settle(self, ticket: int, result: object, error: KSSMClientError | None) -> None:
        future = self._futures.pop(ticket)
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def _schedule(self, event: RetryLater) -> None:
        if event.attempt > self._backoff.attempts:
            self._handle(self._core.give_up(event.session, event.error))
            return
        timer = asyncio.create_task(self._retry(event))
        self._timers.add(timer)
        timer.add_done_callback(self._timers.discard)

    async def _retry(self, event: RetryLater) -> None:
        await self._sleep(self._backoff.delay(event.attempt))
        self._core.retry(event.session)
        self._wake.set()

    def _stop(self, error: KSSMClientError) -> None:
        """Nothing more will be answered: fail what waits, and all later calls."""
        if self._end is None:
            self._end = error
        self._handle(self._core.fail_all(error))


def _mark_retrieved(future: asyncio.Future[Any]) -> None:
    """A caller may stop listening; that is no reason for a warning."""
    if not future.cancelled():
        future.exception()


def connect(
    url: str = DEFAULT_URL,
    *,
    api_key: str | None = None,
    window: int = DEFAULT_WINDOW,
    backoff: Backoff | None = None,
) -> AsyncClient:
    """A client for ``async with``; http, https, ws and wss addresses are understood."""
    return AsyncClient(url, api_key=api_key, window=window, backoff=backoff)
