"""The state machine beyond frames: sessions, closing, and answers that cannot be."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kssm_client.core import ClientCore
from kssm_client.errors import (
    ClientClosedError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    ProtocolError,
    ReplyLostError,
    TooLargeError,
)
from kssm_client.events import Draining, Succeeded
from kssm_client.types import SessionInfo, SessionOptions
from tests.client.model_server import Message
from tests.client.slow_wire import Wire, opened, samples, wired


def test_control_messages_keep_their_place_among_frames() -> None:
    core, wire = wired()
    key, session = opened(core, wire)
    core.append(key, 1)
    reset = core.control(key, "session.reset")
    core.append(key, 2)
    forecast = core.control(key, "forecast.create", horizon=5, quantiles=[0.25])
    core.append(key, 3)
    wire.settle()
    assert samples(session) == [1, "reset", 2, 3]
    assert wire.results[reset] == Succeeded(reset, None)
    values = wire.forecast(forecast)
    assert (values.seq, values.horizon, values.levels) == (1, 5, (0.25,))
    assert values.values[0, 0, 0] == 2.0 + 0.25 * 8


def test_a_cut_while_creating_creates_again() -> None:
    core, wire = wired()
    _, ticket = core.create(SessionOptions())
    wire.connect()
    wire.transmit()
    wire.cut()
    wire.settle()
    assert isinstance(wire.results[ticket], Succeeded)


def test_closing_counts_as_done_when_the_session_is_gone() -> None:
    core, wire = wired()
    key, session = opened(core, wire)
    ticket = core.control(key, "session.close")
    wire.transmit()
    wire.serve()
    assert session.id not in wire.server.sessions
    wire.cut()
    wire.settle()
    assert wire.results[ticket] == Succeeded(ticket, None)
    with pytest.raises(ClientClosedError):
        core.append(key, 1)


def test_a_vanished_session_fails_its_frames_and_later_calls_only() -> None:
    core, wire = wired()
    key, session = opened(core, wire)
    other, _ = opened(core, wire)
    del wire.server.sessions[session.id]
    tickets = [core.append(key, i) for i in range(3)]
    fine = core.append(other, 1)
    wire.settle()
    assert all(wire.error(ticket).code == "session_not_found" for ticket in tickets)
    assert wire.forecast(fine).seq == 0
    with pytest.raises(NotFoundError):
        core.append(key, 4)


@pytest.mark.parametrize(("next_seq", "code"), [(0, "frames_lost"), (5, "session_taken")])
def test_a_server_that_counts_otherwise_is_a_conflict(next_seq: int, code: str) -> None:
    core, wire = wired()
    key, session = opened(core, wire)
    core.append(key, 1)
    core.append(key, 2)
    wire.settle()
    wire.cut()
    session.next_seq = next_seq
    ticket = core.append(key, 3)
    wire.settle()
    error = wire.error(ticket)
    assert isinstance(error, ConflictError)
    assert error.code == code
    assert error.details == {"expected_seq": next_seq}


def test_a_frame_whose_forecast_is_gone_says_so() -> None:
    core, wire = wired()
    key, session = opened(core, wire)
    lost, kept = core.append(key, 1), core.append(key, 2)
    wire.transmit()
    wire.serve()
    wire.cut()
    del session.replies[0]
    wire.settle()
    assert isinstance(wire.error(lost), ReplyLostError)
    assert wire.forecast(kept).seq == 1
    assert samples(session) == [1, 2]


def test_attaching_goes_on_with_the_servers_number() -> None:
    core, wire = wired()
    key, session = opened(core, wire)
    core.append(key, 1)
    wire.settle()
    second = ClientCore()
    other = Wire(second, wire.server)
    key, ticket = second.attach(session.id, "json")
    other.settle()
    result = other.results[ticket]
    assert isinstance(result, Succeeded)
    assert isinstance(result.result, SessionInfo)
    assert (result.result.next_seq, result.result.encoding) == (1, "json")
    frame = second.append(key, 2)
    other.settle()
    assert other.forecast(frame).seq == 1


def test_opening_what_does_not_exist_fails() -> None:
    core, wire = wired()
    key, absent = core.attach("nobody")
    _, unknown = core.create(SessionOptions(model="other"))
    wire.settle()
    assert isinstance(wire.error(absent), NotFoundError)
    assert wire.error(unknown).code == "model_not_found"
    with pytest.raises(ClientClosedError):
        core.info(key)


def test_goaway_stops_sending_until_the_next_connection() -> None:
    core, wire = wired()
    key, session = opened(core, wire)
    core.append(key, 1)
    wire.transmit()
    assert core.receive('{"type": "goaway", "time_left_s": 3}') == [Draining(3.0)]
    core.append(key, 2)
    assert core.outgoing() == []
    assert not core.drained
    wire.serve()
    wire.deliver()
    assert core.drained
    wire.cut()
    wire.settle()
    assert samples(session) == [1, 2]


def test_fail_all_leaves_sessions_usable() -> None:
    core, wire = wired()
    key, session = opened(core, wire)
    lost = core.append(key, 1)
    wire.transmit()
    wire.serve()
    wire.take(core.fail_all(TooLargeError("too large")))
    wire.cut()
    assert isinstance(wire.error(lost), TooLargeError)
    after = core.append(key, 2)
    wire.settle()
    assert wire.forecast(after).seq == 1
    assert samples(session) == [1, 2]


@pytest.mark.parametrize(
    "message",
    [
        "no json",
        "[]",
        '{"type": "unheard-of"}',
        '{"type": "forecast", "session": "s1", "seq": 9, "quantiles": {"0.5": [[1]]}}',
        '{"type": "ack", "of": "session.reset"}',
        b"\x01",
        b"\x02\x02" + bytes(14),
        b"\x01\x02" + bytes(14),
        b"\x01\x02\x00\x00\x07\x00\x00\x00" + bytes(8),
    ],
)
def test_an_answer_that_cannot_be_one_is_a_protocol_error(message: Message) -> None:
    core, wire = wired()
    key, _ = opened(core, wire)
    core.append(key, 1)
    core.outgoing()
    with pytest.raises(ProtocolError):
        core.receive(message)


def test_an_answer_to_nothing_is_a_protocol_error() -> None:
    core, wire = wired()
    opened(core, wire)
    with pytest.raises(ProtocolError):
        core.receive(json.dumps({"type": "ack", "of": "keepalive"}))


def test_a_frame_applied_behind_a_refused_one_is_a_protocol_error() -> None:
    core, wire = wired()
    key, _ = opened(core, wire)
    core.append(key, 1)
    core.append(key, 2)
    wire.transmit()
    wire.serve()
    core.receive('{"type": "error", "error": {"code": "numerical_fault", "message": ""}}')
    with pytest.raises(ProtocolError):
        core.receive(wire.downward[1])


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ([[1.0, 2.0, 3.0]], "wrong_shape"),
        ("text", "wrong_shape"),
        (np.zeros((0, 2)), "empty_frame"),
        ([[np.inf, 0.0]], "non_finite_value"),
        ([[1e31, 0.0]], "value_out_of_range"),
    ],
)
def test_unusable_frames_are_refused_before_they_are_sent(values: object, code: str) -> None:
    core, wire = wired()
    key, _ = opened(core, wire, channels=2)
    with pytest.raises(InvalidInputError) as caught:
        core.append(key, values)  # pyright: ignore[reportArgumentType]
    assert caught.value.code == code
    assert core.outgoing() == []


def test_too_much_in_one_message_is_refused_before_it_is_sent() -> None:
    core, wire = wired()
    key, _ = opened(core, wire)
    with pytest.raises(TooLargeError):
        core.append(key, np.zeros(300_000))
    with pytest.raises(TooLargeError):
        core.create(SessionOptions(prompt=np.zeros((300_000, 1))))


def test_timestamps_travel_with_base64_samples() -> None:
    core, wire = wired()
    key, session = opened(core, wire)
    ticket = core.append(key, [1.0, None, 3.0], [10.0, "2026-01-01T00:00:00Z", 30.0])
    (message,) = core.outgoing()
    body = json.loads(message)
    assert isinstance(body["values"], str)
    assert body["timestamps"] == [10.0, "2026-01-01T00:00:00Z", 30.0]
    wire.upward.append(message)
    wire.serve()
    wire.deliver()
    assert wire.forecast(ticket).seq == 0
    assert str(session.history) == "[[[1.0], [nan], [3.0]]]"
    with pytest.raises(InvalidInputError, match="timestamps"):
        core.append(key, [1.0, 2.0], [10.0])


@pytest.mark.parametrize("field", [{"quantiles": [float("nan")]}, {"horizon": object()}], ids=str)
def test_what_json_does_not_have_is_refused_before_it_is_sent(field: dict[str, object]) -> None:
    core, wire = wired()
    key, session = opened(core, wire)
    with pytest.raises(InvalidInputError) as caught:
        core.control(key, "forecast.create", **field)
    assert caught.value.code == "invalid_message"
    with pytest.raises(InvalidInputError):
        core.append(key, [1.0], [object()])  # pyright: ignore[reportArgumentType]
    ticket = core.append(key, 2)
    wire.settle()
    assert wire.forecast(ticket).seq == 0
    assert samples(session) == [2]


def test_numbers_and_times_of_numpy_are_understood() -> None:
    core, wire = wired()
    key, _ = opened(core, wire)
    quantiles = list(np.array([0.25], np.float32))
    forecast = core.control(key, "forecast.create", horizon=np.int64(5), quantiles=quantiles)
    wire.settle()
    assert wire.forecast(forecast).values.shape == (1, 1, 5)
    times = np.array(["1970-01-01T00:01", "1970-01-01T00:02"], "datetime64[m]")
    core.append(key, [1.0, 2.0], list(times))
    (message,) = core.outgoing()
    assert json.loads(message)["timestamps"] == [60.0, 120.0]
