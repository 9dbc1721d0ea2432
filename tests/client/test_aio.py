"""The asyncio shell against a fake server on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from unittest.mock import Mock

import numpy as np
import pytest

from kssm_client import (
    Backoff,
    ClientClosedError,
    ConnectionFailedError,
    Forecast,
    InvalidInputError,
    KSSMClientError,
    OverloadedError,
    ProtocolError,
    ServerError,
    TooLargeError,
    UnauthorizedError,
    connect,
)
from kssm_client.aio import AsyncClient
from kssm_client.core import ClientCore
from kssm_client.types import Encoding
from tests.client.fake_server import FakeServer, running
from tests.client.model_server import BAD_VALUE, ModelServer

QUICK = Backoff(initial=0.001, maximum=0.01, attempts=8, uniform=lambda: 0.0)


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    fake = FakeServer()
    async with running(fake):
        yield fake


def history(server: FakeServer) -> list[float]:
    (session,) = server.model.sessions.values()
    return [entry[0][0] for entry in session.history]


async def test_a_session_from_creation_to_deletion(server: FakeServer) -> None:
    async with connect(server.url, backoff=QUICK) as client:
        session = await client.create_session(
            channels=2, horizon=4, quantiles=[0.9, 0.1, 0.5], prompt=[[1, 2], [3, None]]
        )
        assert session.info.channels == 2
        assert session.info.model == "m"
        forecast = await session.send([5.0, 6.0])
        assert forecast.session == session.id
        assert forecast.values.shape == (2, 3, 4)
        assert forecast.levels == (0.1, 0.5, 0.9)
        low, high = forecast.interval(0.8)
        np.testing.assert_allclose(high - low, 6.4, rtol=1e-5)
        np.testing.assert_array_equal(forecast.median, forecast.quantile(0.5))
        assert forecast.anomalies[1].score == 6.0
        with pytest.raises(InvalidInputError):
            forecast.quantile(0.3)
        longer = await session.forecast(7, [0.2])
        assert (longer.channels, longer.horizon, longer.seq) == (2, 7, 0)
        await session.reset()
        await session.close()
        assert server.model.sessions == {}
        with pytest.raises(ClientClosedError):
            await session.send([1.0, 2.0])


async def forecasts_of_200_frames(
    server: FakeServer, encoding: Encoding, cuts: Sequence[int] = ()
) -> list[Forecast]:
    """Stream 0 … 199; after so many forecasts as ``cuts`` say, lose the connection soon."""
    forecasts: list[Forecast] = []
    async with running(server), AsyncClient(server.url, backoff=QUICK) as client:
        session = await client.create_session(encoding=encoding)
        async for forecast in session.stream(np.arange(200.0)):
            forecasts.append(forecast)
            if len(forecasts) in cuts:
                server.swallow = 20
    return forecasts


@pytest.mark.parametrize("encoding", ["binary", "json"])
async def test_streaming_through_cuts_equals_an_undisturbed_stream(encoding: Encoding) -> None:
    expected = await forecasts_of_200_frames(FakeServer(), encoding)
    shaken = FakeServer()
    actual = await forecasts_of_200_frames(shaken, encoding, cuts=(30, 90, 150))
    assert shaken.connections == 4
    assert history(shaken) == list(range(200))
    assert [f.seq for f in actual] == list(range(200))
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one.values, other.values)
        assert one.anomalies == other.anomalies


async def test_a_stream_yields_before_its_source_ends(server: FakeServer) -> None:
    source: asyncio.Queue[float] = asyncio.Queue()

    async def frames() -> AsyncIterator[float]:
        while True:
            yield await source.get()

    async with connect(server.url) as client:
        session = await client.create_session()
        stream = session.stream(frames())
        for seq in range(3):
            source.put_nowait(1.0)
            assert (await anext(stream)).seq == seq
        await stream.aclose()
        assert (await session.send(2.0)).seq == 3


async def test_a_source_that_fails_fails_the_stream_after_its_forecasts(
    server: FakeServer,
) -> None:
    def frames() -> Iterator[float]:
        yield 1.0
        yield 2.0
        raise OSError("sensor gone")

    async with connect(server.url) as client:
        session = await client.create_session()
        stream = session.stream(frames())
        assert [(await anext(stream)).seq for _ in range(2)] == [0, 1]
        with pytest.raises(OSError, match="sensor gone"):
            await anext(stream)


async def test_a_bad_frame_fails_its_caller_only(server: FakeServer) -> None:
    async with connect(server.url) as client:
        session = await client.create_session()
        futures = [session.submit(value) for value in (1.0, BAD_VALUE, 2.0)]
        first, bad, last = await asyncio.gather(*futures, return_exceptions=True)
        assert isinstance(first, Forecast)
        assert isinstance(bad, ServerError)
        assert isinstance(last, Forecast)
        assert (first.seq, bad.code, last.seq) == (0, "numerical_fault", 1)
        with pytest.raises(InvalidInputError):
            session.submit(np.inf)
        with pytest.raises(InvalidInputError):
            await session.forecast(quantiles=[np.nan])
        assert (await session.send(3.0)).seq == 2


async def test_a_busy_server_is_asked_again_with_growing_pauses(server: FakeServer) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async with AsyncClient(server.url, backoff=Backoff(uniform=lambda: 0.0), sleep=sleep) as client:
        session = await client.create_session()
        server.model.busy = 3
        assert (await session.send(1.0)).seq == 0
        assert pauses == pytest.approx([0.1, 0.2, 0.4])


async def test_a_server_that_stays_busy_fails_the_frame(server: FakeServer) -> None:
    async with AsyncClient(server.url, backoff=QUICK) as client:
        session = await client.create_session()
        server.model.busy = 1000
        with pytest.raises(OverloadedError):
            await session.send(1.0)
        server.model.busy = 0
        assert (await session.send(2.0)).seq == 0


@pytest.mark.parametrize("code", [1012, 1001, 1000])
async def test_a_close_by_the_server_means_connecting_again(server: FakeServer, code: int) -> None:
    async with connect(server.url, backoff=QUICK) as client:
        session = await client.create_session()
        await session.send(1.0)
        server.refuse_connections = 3
        await server.close_all(code)
        assert (await session.send(2.0)).seq == 1
        assert client.reconnections == 1
        assert history(server) == [1.0, 2.0]


async def test_goaway_moves_to_a_new_connection(server: FakeServer) -> None:
    async with connect(server.url, backoff=QUICK) as client:
        session = await client.create_session()
        server.goaway = True
        forecasts = [f.seq async for f in session.stream(np.arange(50.0))]
        assert forecasts == list(range(50))
        assert client.reconnections == 1
        assert server.connections == 2


async def test_a_server_that_does_not_come_back_fails_what_waits() -> None:
    server = FakeServer()
    async with running(server) as listener, connect(server.url, backoff=QUICK) as client:
        session = await client.create_session()
        listener.close()
        await listener.wait_closed()
        with pytest.raises(ConnectionFailedError):
            await session.send(1.0)
        with pytest.raises(ConnectionFailedError):
            await session.send(2.0)


async def test_an_unreachable_server_and_a_wrong_key_say_so() -> None:
    server = FakeServer(api_key="secret")
    async with running(server):
        with pytest.raises(UnauthorizedError):
            await connect(server.url, api_key="wrong").__aenter__()
        async with connect(server.url, api_key="secret") as client:
            await client.create_session()
    with pytest.raises(ConnectionFailedError):
        await connect(server.url).__aenter__()
    with pytest.raises(InvalidInputError):
        connect("ftp://nowhere")


async def test_a_key_that_is_revoked_ends_the_client(server: FakeServer) -> None:
    async with connect(server.url, backoff=QUICK) as client:
        session = await client.create_session()
        await server.close_all(1008)
        with pytest.raises(UnauthorizedError):
            await session.send(1.0)


async def test_too_large_for_the_server_fails_what_waits_and_goes_on(server: FakeServer) -> None:
    async with connect(server.url, backoff=QUICK) as client:
        session = await client.create_session()
        server.model.busy = 1000
        future = session.submit(1.0)
        await server.seen.wait()
        await server.close_all(1009)
        with pytest.raises(TooLargeError):
            await future
        server.model.busy = 0
        assert (await session.send(2.0)).seq == 0


async def test_a_server_that_talks_nonsense_ends_the_client() -> None:
    server = FakeServer()
    async with running(server), connect(server.url) as client:
        session = await client.create_session()
        (socket,) = server.sockets
        await socket.send("hello?")
        await asyncio.gather(session.submit(1.0), return_exceptions=True)
        with pytest.raises(ProtocolError):
            await session.send(1.0)


@pytest.mark.parametrize("method", ["outgoing", "receive"])
async def test_a_mistake_of_the_clients_leaves_nobody_waiting(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    async with connect(server.url) as client:
        session = await client.create_session()
        monkeypatch.setattr(ClientCore, method, Mock(side_effect=RuntimeError("a bug")))
        for _ in range(2):
            with pytest.raises(KSSMClientError, match="a bug"):
                await session.send(1.0)


async def test_closing_the_client_fails_what_waits_and_keeps_the_session(
    server: FakeServer,
) -> None:
    async with connect(server.url) as client:
        session = await client.create_session()
        server.model.busy = 1 << 30
        waiting = session.submit(1.0)
    with pytest.raises(ClientClosedError):
        await waiting
    with pytest.raises(ClientClosedError):
        await session.send(1.0)
    server.model.busy = 0
    async with connect(server.url) as client:
        again = await client.attach_session(session.id)
        assert (await again.send(1.0)).seq == 0


async def test_many_sessions_on_one_connection() -> None:
    server = FakeServer(model=ModelServer(max_in_flight=16))
    async with running(server), connect(server.url) as client:
        sessions = [await client.create_session() for _ in range(10)]

        async def run(index: int) -> list[int]:
            return [f.seq async for f in sessions[index].stream(np.full(30, float(index)))]

        results = await asyncio.gather(*(run(index) for index in range(10)))
    assert results == [list(range(30))] * 10
    assert server.connections == 1
    for index, session in enumerate(server.model.sessions.values()):
        assert session.history == [[[float(index)]]] * 30


def test_delays_grow_to_a_limit_and_jitter_shortens_them() -> None:
    steady = Backoff(initial=1, factor=3, maximum=20, jitter=0.5, uniform=lambda: 0.0)
    assert [steady.delay(n) for n in (1, 2, 3, 4, 500)] == [1, 3, 9, 20, 20]
    shaken = Backoff(initial=1, jitter=0.5, uniform=lambda: 0.5)
    assert shaken.delay(1) == 0.75
