from __future__ import annotations

import base64
import struct

import numpy as np
import pytest

from kssm.errors import NumericalError
from tests.service.fakes import until
from tests.service.peer import append, binary


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
        "anomaly": [
            {
                "score": pytest.approx(0.30103, abs=1e-5),
                "tail_probability": 0.5,
                "surprise": pytest.approx(0.90309, abs=1e-5),
            }
        ],
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


async def test_binary_answers_of_version_2_hold_the_surprise(peer):
    created = await peer.create(horizon=1, quantiles=[0.5], encoding="binary", binary_version=2)
    assert created["binary_version"] == 2
    peer.post(binary(created["handle"], 0, 1.0))
    data = await peer.raw()
    assert struct.unpack_from("<BBHIQ", data) == (2, 2, 0, created["handle"], 0)
    floats = np.frombuffer(data, "<f4", offset=16)
    np.testing.assert_allclose(floats[1:], [0.30103, 0.5, 0.90309], rtol=1e-5)
    attach = {"type": "session.attach", "session": created["session"], "encoding": "binary"}
    assert (await peer.ask(attach))["binary_version"] == 1
    peer.post(binary(created["handle"], 1, 1.0))
    assert len(await peer.raw()) == 16 + 4 * 3


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
