"""One WebSocket connection: messages in, exactly one answer each out, in the same order.

The reader hands each message over at once and goes on; the writer waits for the answers in turn.
So many frames are under way together while their answers keep their order. Generated tokens do
not wait for the answers before them: they go out at once, before their own answer. The reader stops
reading, and the peer feels it through TCP, when too much is unanswered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from kssm.errors import KSSMError
from service import wire
from service.dispatch import Dispatcher
from service.exchange import Exchange, Payload
from service.text_dispatch import TextDispatcher

if TYPE_CHECKING:
    from service.core import Service

BYTES_IN_FLIGHT: Final = 8
"""Unanswered bytes a connection may have, in messages of the greatest size."""
GOAWAY_PATIENCE_S: Final = 1.0
RESTART: Final = 1012


class Connection:
    """Serves one peer through ``receive`` (None at its end), ``send`` and ``close``.

    The last two never raise, also when the peer has gone.
    """

    def __init__(
        self,
        service: Service,
        tenant: str,
        receive: Callable[[], Awaitable[Payload | None]],
        send: Callable[[Payload], Awaitable[None]],
        close: Callable[[int, str], Awaitable[None]],
    ) -> None:
        self._service = service
        self._tokens: asyncio.Queue[Payload] = asyncio.Queue()
        self._texts = TextDispatcher(service.texts, tenant, self._tokens.put_nowait)
        self._dispatcher = Dispatcher(
            service.manager, self._texts, tenant, service.settings.max_in_flight
        )
        self._receive = receive
        self._send = send
        self._close = close
        self._limit = service.settings.max_in_flight
        self._max_bytes = BYTES_IN_FLIGHT * service.settings.max_message_bytes
        self._queue: asyncio.Queue[Exchange] = asyncio.Queue()
        self._unanswered = 0
        self._bytes = 0
        self._room = asyncio.Event()

    async def run(self) -> None:
        """Serve until the peer leaves; what it was promised is still applied, not answered."""
        reader = asyncio.create_task(self._read())
        writers = (asyncio.create_task(self._write()), asyncio.create_task(self._tell()))
        tasks = (reader, *writers)
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._texts.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            while not self._queue.empty():
                self._queue.get_nowait().future.add_done_callback(_look_at)
                self._queue.task_done()

    async def goaway(self, time_left_s: float) -> None:
        """Announce the end; a peer that does not listen is not waited for."""
        try:
            async with asyncio.timeout(GOAWAY_PATIENCE_S):
                await self._send(wire.encode_goaway(time_left_s))
        except TimeoutError:
            return

    async def restart(self) -> None:
        """Close with the code that asks the peer to come back."""
        await self._close(RESTART, "the server is stopping")

    async def answered(self) -> None:
        """Wait until every message so far is answered."""
        await self._queue.join()

    async def _read(self) -> None:
        while (message := await self._next()) is not None:
            began = time.perf_counter()
            exchange = self._dispatcher.accept(message, self._unanswered)
            exchange.began, exchange.size = began, len(message)
            self._unanswered += 1
            self._bytes += exchange.size
            self._queue.put_nowait(exchange)

    async def _next(self) -> Payload | None:
        while self._unanswered >= 2 * self._limit or self._bytes > self._max_bytes:
            self._room.clear()
            await self._room.wait()
        return await self._receive()

    async def _write(self) -> None:
        while True:
            exchange = await self._queue.get()
            try:
                await self._send(await self._answer(exchange))
            finally:
                self._unanswered -= 1
                self._bytes -= exchange.size
                self._room.set()
                self._queue.task_done()

    async def _tell(self) -> None:
        while True:
            token = await self._tokens.get()
            try:
                await self._send(token)
            finally:
                self._tokens.task_done()

    async def _answer(self, exchange: Exchange) -> Payload:
        if exchange.streamed:
            await asyncio.wait([exchange.future])
            await self._tokens.join()
        try:
            answer = exchange.encode(await exchange.future)
        except Exception as error:  # noqa: BLE001 - every message is answered, whatever happened
            self._service.metrics.error(error.code if isinstance(error, KSSMError) else "internal")
            return wire.encode_error(error, exchange.session, exchange.seq, exchange.request_id)
        if exchange.frame:
            self._service.metrics.streamed(time.perf_counter() - exchange.began)
        return answer


def _look_at(future: asyncio.Future[Any]) -> None:
    """Nobody is left to answer; an error of the future is not worth a warning."""
    if not future.cancelled():
        future.exception()
