"""The real client against the real server, on a network that fails."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from kssm.forecast.testing import tiny_forecaster
from kssm.runtime import Engine
from kssm_client import (
    AsyncClient,
    Backoff,
    Forecast,
    InvalidInputError,
    NotFoundError,
    RestClient,
    ServerError,
    UnauthorizedError,
)
from kssm_client.types import Encoding
from service.app import create_app
from service.server import make_server
from service.settings import Settings

QUICK = Backoff(initial=0.01, maximum=0.1, attempts=100)
FRAMES = 160


@contextmanager
def serving(port: int = 0, **settings: object) -> Generator[str, None, None]:
    """The service with a tiny model in a thread, as ``kssm serve`` runs it; its address."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        port = listener.getsockname()[1]
        chosen = Settings(port=port, log_level="critical", **settings)  # pyright: ignore
        server = make_server(create_app(chosen, Engine(tiny_forecaster())), chosen)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        url = f"http://127.0.0.1:{port}"
        with RestClient(url) as client:
            while thread.is_alive() and not client.ready():
                thread.join(0.01)
        try:
            yield url
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as address:
        yield address


class Proxy:
    """Forwards TCP to the server, and cuts the line after so many bytes in either direction."""

    def __init__(self, target: str) -> None:
        self.port = int(target.rsplit(":", 1)[1])
        self.budget: int | None = None
        self.cuts = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.port)
        pipes = [self._pipe(reader, up_writer), self._pipe(up_reader, writer)]
        tasks = [asyncio.create_task(pipe) for pipe in pipes]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for end in (writer, up_writer):
            end.transport.abort()
            with suppress(OSError):
                await end.wait_closed()

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            if self.budget is not None:
                self.budget -= len(data)
                if self.budget <= 0:
                    self.budget = None
                    self.cuts += 1
                    return
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def proxied(target: str) -> AsyncGenerator[tuple[Proxy, str], None]:
    proxy = Proxy(target)
    listener = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    async with listener:
        yield proxy, f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"


def signal(frames: int = FRAMES) -> np.ndarray:
    """Two channels with noise, a cycle and some missing samples: [frames, 1, 2]."""
    generator = np.random.default_rng(3)
    time = np.arange(frames)[:, None]
    values = np.sin(time / [3.0, 7.0]) + 0.1 * generator.normal(size=(frames, 2))
    values[generator.random((frames, 2)) < 0.05] = np.nan
    return values[:, None, :]


async def collect(
    address: str, encoding: Encoding, proxy: Proxy | None = None, cuts: Sequence[int] = ()
) -> list[Forecast]:
    """Stream the signal; after each of ``cuts`` forecasts the line breaks soon."""
    forecasts: list[Forecast] = []
    async with AsyncClient(address, backoff=QUICK) as client:
        session = await client.create_session(
            channels=2, horizon=20, prompt=signal(40)[:, 0], encoding=encoding
        )
        async for forecast in session.stream(signal()):
            forecasts.append(forecast)
            if proxy is not None and len(forecasts) in cuts:
                proxy.budget = 7 * len(forecasts)
        await session.close()
        assert client.reconnections == (proxy.cuts if proxy else 0)
    return forecasts


def assert_same(actual: Sequence[Forecast], expected: Sequence[Forecast]) -> None:
    assert [f.seq for f in actual] == list(range(FRAMES))
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one.values, other.values)
        assert one.anomalies == other.anomalies


@pytest.mark.parametrize("encoding", ["binary", "json"])
async def test_a_stream_over_a_line_that_breaks_equals_an_undisturbed_one(
    url: str, encoding: Encoding
) -> None:
    expected = await collect(url, encoding)
    async with proxied(url) as (proxy, address):
        actual = await collect(address, encoding, proxy, cuts=(10, 40, 90, 130))
        # Answers come in bursts, so a cut may fall due before the one before it has happened.
        assert proxy.cuts >= 2
    assert_same(actual, expected)


async def test_a_stream_goes_on_where_it_was_when_the_server_restarts(
    url: str, tmp_path: Path
) -> None:
    expected = await collect(url, "binary")
    store = tmp_path / "sessions.db"
    first = ExitStack()
    address = first.enter_context(serving(store=store))
    async with AsyncClient(address, backoff=QUICK) as client:
        session = await client.create_session(channels=2, horizon=20, prompt=signal(40)[:, 0])
        stream = session.stream(signal())
        forecasts = [await anext(stream) for _ in range(50)]
        await asyncio.to_thread(first.close)
        with serving(int(address.rsplit(":", 1)[1]), store=store):
            forecasts += [forecast async for forecast in stream]
            assert client.reconnections >= 1
            await client.close()
    assert_same(forecasts, expected)


async def test_a_refused_frame_costs_only_itself(url: str) -> None:
    async with AsyncClient(url) as client:
        session = await client.create_session(encoding="json", sample_interval=1.0)
        sent = [
            session.submit([1.0, 2.0], [10.0, 11.0]),
            session.submit([3.0], [5.0]),
            session.submit([4.0], [12.0]),
        ]
        first, refused, last = await asyncio.gather(*sent, return_exceptions=True)
        assert isinstance(first, Forecast)
        assert isinstance(refused, InvalidInputError)
        assert refused.code == "invalid_timestamps"
        assert isinstance(last, Forecast)
        assert (first.seq, last.seq) == (0, 1)
        with pytest.raises(ServerError) as caught:
            await session.forecast(horizon=10**9)
        assert caught.value.code == "invalid_horizon"
        other = await client.attach_session(session.id)
        assert (await other.send(5.0)).seq == 2
        with pytest.raises(NotFoundError):
            await client.attach_session("0" * 32)


async def test_rest_and_stream_agree(url: str) -> None:
    history = signal()[:, 0, 0]

    def over_rest() -> tuple[Forecast, np.ndarray, bytes]:
        with RestClient(url) as rest:
            (batch,) = rest.forecast([history], 12)
            session = rest.create_session(horizon=12, prompt=history[:-1])
            forecast = rest.append(session, 0, history[-1:])
            np.testing.assert_array_equal(rest.append(session, 0, 9.0).values, forecast.values)
            fork = rest.fork(session)
            assert rest.session(fork).next_seq == 0
            state = rest.get_state(session)
            rest.reset(session)
            rest.put_state(session, state)
            again = rest.session_forecast(session, 12)
            np.testing.assert_array_equal(again.values, forecast.values)
            for name in (session, fork):
                rest.delete_session(name)
            with pytest.raises(NotFoundError):
                rest.session(session)
            assert rest.models()["models"]
            return forecast, batch.values, state

    rest_forecast, batch, _ = await asyncio.to_thread(over_rest)
    async with AsyncClient(url) as client:
        session = await client.create_session(horizon=12, prompt=history[:-1], encoding="json")
        forecast = await session.send(history[-1:])
    np.testing.assert_allclose(forecast.values, rest_forecast.values, rtol=1e-6)
    np.testing.assert_allclose(forecast.values[0], batch, rtol=1e-4, atol=1e-6)


async def test_a_wrong_key_is_told_apart() -> None:
    digest = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"  # "secret"
    with serving(api_keys={"me": digest}) as address:
        async with AsyncClient(address, api_key="secret") as client:
            await client.create_session()
        async with AsyncClient(address, api_key="guess") as client:
            with pytest.raises(UnauthorizedError):
                await client.create_session()
