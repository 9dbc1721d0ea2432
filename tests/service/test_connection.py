from __future__ import annotations

import asyncio
import base64
import struct

import numpy as np
import pytest

from kssm.errors import NumericalError
from tests.service.fakes import until
from tests.service.peer import Peer


@pytest.fixture
async def peer(service):
    made = Peer(service)
    yield made
    service.engine.let_go()
    made.resume()
    await made.leave()


def append(session: str, seq: int, *values: float, **fields):
    rows = [[value] for value in values or (1.0,)]
    return {"type": "frames.append", "session": session, "seq": seq, "values": rows, **fields}


def binary(handle: int, seq: int, *values: float) -> bytes:
    return struct.pack("<BBHIQ", 1, 1, 0, handle, seq) + np.array(values, dtype="<f4").tobytes()


async def test_create_says_everything_about_the_session(peer):
    created = await peer.create(channels=2, horizon=3, quantiles=[0.5], request_id="r")
    assert len(created.pop("session")) == 32
    assert created == {
        "type": "session.created",
        "handle": 1,
        "model": "kssm-signal-base",
        "channels": 2,
        "horizon": 3,
        "quantiles": [0.5],
        "encoding": "json",
        "next_seq": 0,
        "max_in_flight": 8,
        "request_id": "r",
    }
    assert (await peer.create())["handle"] == 2


async def test_a_frame_is_answered_with_its_forecast(peer):
    session = (await peer.create(horizon=2, quantiles=[0.5]))["session"]
    assert await peer.ask(append(session, 0, 1.0, 2.0, request_id="r")) == {
        "type": "forecast",
        "session": session,
        "seq": 0,
        "horizon": 2,
        "quantiles": {"0.5": [[3.5, 4.5]]},
        "anomaly": [{"score": pytest.approx(0.30103, abs=1e-5), "tail_probability": 0.5}],
        "request_id": "r",
    }


async def test_binary_frames_and_binary_answers(peer):
    created = await peer.create(horizon=2, quantiles=[0.5], encoding="binary", channels=2)
    session, handle = created["session"], created["handle"]
    peer.post(binary(handle, 0, 1.0, 10.0, 2.0, float("nan")))
    data = await peer.raw()
    assert isinstance(data, bytes)
    assert struct.unpack_from("<BBHIQ", data) == (1, 2, 0, handle, 0)
    floats = np.frombuffer(data, "<f4", offset=16)
    np.testing.assert_array_equal(floats[:4], [3.5, 4.5, 10.5, 11.5])
    peer.post({**append(session, 1), "values": [[0.0, 0.0]]})
    assert struct.unpack_from("<BBHIQ", await peer.raw())[1:] == (2, 0, handle, 1)
    assert (await peer.ask({"type": "keepalive"}))["type"] == "ack"
    assert (await peer.ask(binary(handle, 5, 1.0, 1.0)))["error"]["code"] == "seq_gap"


async def test_base64_frames(peer):
    session = (await peer.create(quantiles=[0.5], horizon=1))["session"]
    payload = base64.b64encode(np.array([1.0, 2.0], "<f4").tobytes()).decode()
    reply = await peer.ask({**append(session, 0), "values": payload})
    assert reply["quantiles"] == {"0.5": [[3.5]]}


async def test_control_messages(peer):
    session = (await peer.create(quantiles=[0.5], horizon=1))["session"]
    await peer.ask(append(session, 0, 4.0))
    ahead = await peer.ask({"type": "forecast.create", "session": session, "horizon": 2})
    assert (ahead["type"], ahead["seq"], ahead["quantiles"]) == (
        "forecast",
        0,
        {"0.5": [[4.5, 5.5]]},
    )
    ack = await peer.ask({"type": "session.reset", "session": session, "request_id": "r"})
    assert ack == {"type": "ack", "of": "session.reset", "session": session, "request_id": "r"}
    assert (await peer.ask(append(session, 1)))["quantiles"] == {"0.5": [[1.5]]}
    closed = await peer.ask({"type": "session.close", "session": session})
    assert closed == {"type": "ack", "of": "session.close", "session": session}
    gone = await peer.ask(append(session, 2))
    assert (gone["error"]["code"], gone["session"], gone["seq"]) == (
        "session_not_found",
        session,
        2,
    )
    assert await peer.ask({"type": "keepalive", "request_id": "k"}) == {
        "type": "ack",
        "of": "keepalive",
        "request_id": "k",
    }


async def test_answers_come_in_the_order_of_the_messages(peer, service):
    slow, fast = (await peer.create())["session"], (await peer.create())["session"]
    service.engine.hold()
    peer.post(append(slow, 0))
    peer.post({"type": "keepalive"})
    peer.post("nonsense")
    peer.post(append(fast, 0))
    peer.post({"type": "session.reset", "session": slow})
    await until(lambda: service.engine.held == 2)
    service.engine.let_go()
    kinds = [await peer.read() for _ in range(5)]
    assert [kind["type"] for kind in kinds] == ["forecast", "ack", "error", "forecast", "ack"]
    assert [kind.get("session") for kind in kinds] == [slow, None, None, fast, slow]


async def test_duplicates_and_gaps(peer):
    session = (await peer.create())["session"]
    first = await peer.ask(append(session, 0, 1.0))
    assert await peer.ask(append(session, 0, 99.0)) == first
    gap = await peer.ask(append(session, 2))
    assert (gap["type"], gap["error"]["code"], gap["error"]["expected_seq"]) == (
        "error",
        "seq_gap",
        1,
    )
    for seq in range(1, 40):
        await peer.ask(append(session, seq))
    assert await peer.ask(append(session, 3)) == {
        "type": "ack",
        "of": "frames.append",
        "session": session,
        "seq": 3,
    }


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", "invalid_json"),
        (b"", "truncated_frame"),
        (b"\x00" * 20, "unsupported_frame"),
        (binary(99, 0, 1.0), "session_not_found"),
        ({"type": "nothing"}, "unknown_type"),
        ({"type": "session.attach", "session": "x"}, "session_not_found"),
        ({"type": "session.create", "horizon": 0}, "invalid_horizon"),
        ({"type": "session.create", "channels": -1}, "invalid_message"),
        ({"type": "session.create", "prompt": [[1.0], []]}, "wrong_shape"),
    ],
)
async def test_a_bad_message_costs_nothing_but_an_error(peer, message, code):
    session = (await peer.create())["session"]
    before = await peer.ask(append(session, 0))
    error = await peer.ask(message)
    assert (error["type"], error["error"]["code"]) == ("error", code)
    assert await peer.ask(append(session, 0)) == before
    assert (await peer.ask(append(session, 1)))["type"] == "forecast"


async def test_an_unexpected_failure_costs_nothing_but_an_error(peer, service, monkeypatch, caplog):
    session = (await peer.create())["session"]
    with monkeypatch.context() as patch:
        patch.setattr(service.engine, "append", lambda *args, **kwargs: 1 / 0)
        error = (await peer.ask(append(session, 0)))["error"]
        patch.setattr("service.wire.parse_text", lambda text: 1 / 0)
        other = (await peer.ask(append(session, 0)))["error"]
    assert error == other == {"code": "internal", "message": "internal error", "retryable": False}
    assert "ZeroDivisionError" in caplog.text
    assert (await peer.ask(append(session, 0)))["type"] == "forecast"


async def test_an_engine_error_is_told(peer, service):
    session = (await peer.create())["session"]
    service.engine.fail_next = NumericalError("not finite")
    error = await peer.ask(append(session, 0, request_id="r"))
    assert (error["error"]["code"], error["seq"], error["request_id"]) == (
        "numerical_fault",
        0,
        "r",
    )


async def test_too_many_unanswered_messages(peer, service):
    session = (await peer.create())["session"]
    service.engine.hold()
    for seq in range(12):
        peer.post(append(session, seq))
    await until(lambda: not peer.unread)
    service.engine.let_go()
    replies = [await peer.read() for _ in range(12)]
    assert [reply["type"] for reply in replies] == ["forecast"] * 8 + ["error"] * 4
    assert {reply["error"]["code"] for reply in replies[8:]} == {"overloaded"}
    assert all(reply["error"]["retryable"] for reply in replies[8:])
    assert [reply["seq"] for reply in replies] == list(range(12))
    assert (await peer.ask(append(session, 8)))["type"] == "forecast"


async def test_a_peer_that_does_not_read_is_not_read_from(peer):
    peer.stall()
    for _ in range(100):
        peer.post({"type": "keepalive"})
    for _ in range(300):
        await asyncio.sleep(0)
    assert peer.unread == 100 - 16
    peer.resume()
    kinds = [(await peer.read())["type"] for _ in range(100)]
    assert set(kinds) == {"ack", "error"}


async def test_a_peer_with_much_unanswered_is_not_read_from(peer, service, settings):
    session = (await peer.create())["session"]
    service.engine.hold()
    values = [1.0] * (settings.max_message_bytes * 2 // 3)
    for seq in range(8):
        peer.post(append(session, seq, *values))
    for _ in range(300):
        await asyncio.sleep(0)
    assert peer.unread > 0
    service.engine.let_go()
    assert [(await peer.read())["type"] for _ in range(8)] == ["forecast"] * 8


async def test_a_lost_connection_does_not_lose_the_session(service):
    first, second = Peer(service), Peer(service)
    session = (await first.create(encoding="binary", horizon=1, quantiles=[0.5]))["session"]
    service.engine.hold()
    first.post(append(session, 0, 2.0))
    first.post(append(session, 1, 3.0))
    await until(lambda: service.engine.held > 0)
    await until(lambda: not first.unread)
    await first.leave()
    second.post({"type": "session.attach", "session": session, "request_id": "r"})
    service.engine.let_go()
    attached = await second.read()
    assert (attached["type"], attached["session"], attached["attached"]) == (
        "session.created",
        session,
        True,
    )
    assert (attached["next_seq"], attached["encoding"], attached["request_id"]) == (2, "json", "r")
    assert (await second.ask(append(session, 1)))["quantiles"] == {"0.5": [[5.5]]}
    assert (await second.ask(append(session, 2)))["quantiles"] == {"0.5": [[6.5]]}
    await second.leave()


async def test_attach_takes_the_handle_over(service):
    first, second = Peer(service), Peer(service)
    created = await first.create()
    session, old = created["session"], created["handle"]
    assert (await first.ask(binary(old, 0, 1.0)))["type"] == "forecast"
    new = (await second.ask({"type": "session.attach", "session": session}))["handle"]
    refused = await first.ask(binary(old, 1, 1.0))
    assert (refused["error"]["code"], refused["session"]) == ("session_not_found", session)
    assert (await second.ask(binary(new, 1, 1.0)))["type"] == "forecast"
    again = await first.ask({"type": "session.attach", "session": session})
    assert (again["handle"], again["next_seq"]) == (old, 2)
    assert (await first.ask(binary(old, 2, 1.0)))["type"] == "forecast"
    for peer in (first, second):
        await peer.leave()


async def test_attach_tells_the_seq_of_its_own_turn(peer, service):
    session = (await peer.create())["session"]
    peer.post(append(session, 0))
    peer.post({"type": "session.attach", "session": session})
    peer.post(append(session, 1))
    kinds = [await peer.read() for _ in range(3)]
    assert kinds[1]["next_seq"] == 1
    assert [kind["type"] for kind in kinds] == ["forecast", "session.created", "forecast"]


async def test_tenants_see_the_same_nothing(service):
    ours, theirs = Peer(service, "a"), Peer(service, "b")
    session = (await ours.create())["session"]
    for kind in ("session.attach", "forecast.create", "session.reset", "session.close"):
        foreign = await theirs.ask({"type": kind, "session": session})
        absent = await theirs.ask({"type": kind, "session": "0" * 32})
        assert foreign["error"] == absent["error"]
        assert foreign["error"]["code"] == "session_not_found"
    foreign, absent = await theirs.ask(append(session, 0)), await theirs.ask(append("0" * 32, 0))
    assert foreign["error"] == absent["error"]
    assert (await ours.ask(append(session, 0)))["type"] == "forecast"
    for peer in (ours, theirs):
        await peer.leave()


async def test_a_stopping_service_says_so_and_answers_what_it_accepted(service):
    peer = Peer(service)
    service.connections.add(peer.connection)
    session = (await peer.create())["session"]
    service.engine.hold()
    peer.post(append(session, 0))
    await until(lambda: service.engine.held > 0)
    draining = asyncio.create_task(service.drain())
    assert await peer.read() == {"type": "goaway", "time_left_s": 5.0}
    peer.post(append(session, 1))
    peer.post({"type": "session.create"})
    service.engine.let_go()
    kinds = [await peer.read() for _ in range(3)]
    assert kinds[0]["type"] == "forecast"
    assert [kind["error"]["code"] for kind in kinds[1:]] == ["draining"] * 2
    assert all(kind["error"]["retryable"] for kind in kinds[1:])
    await draining
    await peer.task
    assert peer.closed == 1012


async def test_frames_and_errors_are_counted(peer, service):
    session = (await peer.create())["session"]
    await peer.ask(append(session, 0))
    await peer.ask("nonsense")
    text = service.metrics.render().decode()
    assert 'kssm_frames_total{transport="websocket"} 1.0' in text
    assert 'kssm_errors_total{code="invalid_json"} 1.0' in text
    assert "kssm_sessions 1.0" in text
    assert "kssm_engine_rows_used 1.0" in text
    assert 'kssm_engine_batch_sizes{key="1"} 2.0' in text
