"""The blocking client: the same calls, through a loop in a thread."""

from __future__ import annotations

import numpy as np
import pytest

from kssm_client import Backoff, Client, ClientClosedError, ConnectionFailedError
from kssm_client.sync import connect
from tests.client.fake_server import FakeServer

QUICK = Backoff(initial=0.001, maximum=0.01, attempts=8)


def test_every_call(threaded_server: FakeServer) -> None:
    with connect(threaded_server.url) as client:
        session = client.create_session(channels=2, horizon=4, prompt=[[1, 2]])
        assert session.info.horizon == 4
        assert session.send([1.0, None]).values.shape == (2, 3, 4)
        assert session.forecast(2).seq == 0
        session.reset()
        again = client.attach_session(session.id)
        assert [f.seq for f in again.stream(np.ones((40, 2)))] == list(range(1, 41))
        again.close()
    assert threaded_server.model.sessions == {}


def test_a_stream_survives_a_cut(threaded_server: FakeServer) -> None:
    with connect(threaded_server.url, backoff=QUICK) as client:
        session = client.create_session()
        threaded_server.swallow = 30
        seqs = [forecast.seq for forecast in session.stream(np.arange(60.0))]
    assert seqs == list(range(60))
    assert threaded_server.connections == 2


def test_a_stream_can_be_left(threaded_server: FakeServer) -> None:
    with connect(threaded_server.url) as client:
        session = client.create_session()
        stream = session.stream(iter(lambda: 1.0, None))
        assert [next(stream).seq for _ in range(3)] == [0, 1, 2]
        stream.close()  # pyright: ignore[reportAttributeAccessIssue]
        assert session.send(1.0).seq >= 3


def test_outside_of_its_block_there_is_no_client(threaded_server: FakeServer) -> None:
    client = Client(threaded_server.url)
    with pytest.raises(RuntimeError, match="with"):
        client.create_session()
    with client:
        session = client.create_session()
    client.close()
    with pytest.raises(ClientClosedError):
        session.send(1.0)


def test_an_unreachable_server_says_so() -> None:
    with pytest.raises(ConnectionFailedError):
        Client("http://127.0.0.1:9").__enter__()
