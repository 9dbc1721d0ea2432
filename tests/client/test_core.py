"""The state machine against a model server, one thing at a time."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kssm_client.core import ClientCore, Draining
from kssm_client.errors import (
    ClientClosedError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    ProtocolError,
    ReplyLostError,
    TooLargeError,
)
from kssm_client.ledger import Succeeded
from kssm_client.types import Encoding, SessionInfo, SessionOptions
from tests.client.model_server import BAD_VALUE, Message, ModelSession
from tests.client.slow_wire import WINDOW, Wire, opened, samples, wired


@pytest.mark.parametrize("encoding", ["binary", "json"])
def test_frames_are_applied_in_order_and_answered(encoding: Encoding) -> None:
    core, wire = wired()
    key, session = opened(core, wire, encoding, channels=2)
    tickets = [core.append(key, [i, -i]) for i in range(20)]
    wire.settle()
    assert [entry[0] for entry in session.history] == [[i, -i] for i in range(20)]
    reference = ModelSession("r", 2, 3, [0.1, 0.5, 0.9], "json", state=np.zeros(2))
    for seq, ticket in enumerate(tickets):
        reference.apply(np.array([[seq, -seq]], dtype=float))
        forecast = wire.forecast(ticket)
        assert forecast.seq == seq
        assert forecast.levels == (0.1, 0.5, 0.9)
        expected = reference.forecast(3, [0.1, 0.5, 0.9])
        np.testing.assert_allclose(forecast.values, expected, rtol=1e-6)
        assert [anomaly.score for anomaly in forecast.anomalies] == [seq, -seq]


def test_no_more_frames_unanswered_than_the_window() -> None:
    core, wire = wired()
    key, _ = opened(core, wire)
    for i in range(20):
        core.append(key, i)
    wire.transmit()
    assert len(wire.upward) == WINDOW
    wire.serve(2)
    wire.deliver()
    wire.transmit()
    assert len(wire.upward) == WINDOW


def test_large_forecasts_narrow_the_window_to_what_the_server_keeps() -> None:
    core, wire = wired()
    key, _ = core.create(SessionOptions(channels=8, horizon=2048, quantiles=(0.1, 0.5, 0.9)))
    wire.settle()
    for _ in range(9):
        core.append(key, np.zeros(8))
    wire.transmit()
    assert len(wire.upward) == 2


def test_no_more_messages_unanswered_than_the_server_allows() -> None:
    core, wire = wired(max_in_flight=3)
    keys = [opened(core, wire)[0] for _ in range(4)]
    wire.largest_flight = 0
    for key in keys * 5:
        core.append(key, 1.0)
    wire.settle()
    assert wire.largest_flight == 3
    assert [len(s.history) for s in wire.server.sessions.values()] == [5, 5, 5, 5]


def test_replies_lost_in_a_cut_come_again() -> None:
    core, wire = wired()
    key, session = opened(core, wire)
    tickets = [core.append(key, i) for i in range(4)]
    wire.transmit()
    wire.serve(3)
    wire.deliver(1)
    wire.cut()
    wire.settle()
    assert samples(session) == [0, 1, 2, 3]
    assert [wire.forecast(ticket).seq for ticket in tickets] == [0, 1, 2, 3]


def test_a_refused_frame_fails_alone_and_gives_its_number_to_the_next() -> None:
    core, wire = wired()
    key, session = opened(core, wire)
    good, bad, *rest = (core.append(key, value) for value in (1, BAD_VALUE, 2, 3))
    wire.settle()
    assert wire.error(bad).code == "numerical_fault"
    assert samples(session) == [1, 2, 3]
    assert [wire.forecast(ticket).seq for ticket in (good, *rest)] == [0, 1, 2]


def test_a_refusal_for_now_is_repeated_in_order() -> None:
    core, wire = wired()
    key, session = opened(core, wire)
    wire.server.busy = 7
    tickets = [core.append(key, i) for i in range(6)]
    wire.settle()
    assert samples(session) == list(range(6))
    assert [wire.forecast(ticket).seq for ticket in tickets] == list(range(6))


def test_giving_up_fails_only_the_first_frame() -> None:
    core, wire = wired()
    key, session = opened(core, wire)
    wire.server.busy = WINDOW
    first, second = core.append(key, 1), core.append(key, 2)
    wire.transmit()
    wire.serve()
    wire.deliver()
    assert wire.retries == [key]
    wire.take(core.give_up(key, OverloadedError("full")))
    wire.server.busy = 0
    wire.settle()
    assert isinstance(wire.error(first), OverloadedError)
    assert wire.forecast(second).seq == 0
    assert samples(session) == [2]
    assert core.give_up(key, OverloadedError("full")) == []


def test_nothing_is_sent_between_a_refusal_for_now_and_its_retry() -> None:
    core, wire = wired()
    key, session = opened(core, wire)
    wire.server.busy = 1
    core.append(key, 1)
    wire.transmit()
    wire.serve()
    wire.deliver()
    core.append(key, 2)
    assert core.outgoing() == []
    core.retry(key)
    wire.transmit()
    assert len(wire.upward) == 2
    wire.settle()
    assert samples(session) == [1, 2]


def test_giving_up_on_a_duplicate_keeps_its_number_used() -> None:
    core, wire = wired()
    key, session = opened(core, wire)
    doubtful, later = core.append(key, 1), core.append(key, 2)
    wire.transmit()
    wire.serve(1)
    wire.cut()
    wire.connect()
    for _ in range(2):
        wire.transmit()
        wire.serve()
        wire.server.busy = 1
        wire.deliver()
    wire.take(core.give_up(wire.retries.pop(), OverloadedError("full")))
    wire.settle()
    assert isinstance(wire.error(doubtful), OverloadedError)
    assert wire.forecast(later).seq == 1
    assert samples(session) == [1, 2]


def test_giving_up_before_attaching_fails_all_and_asks_the_server_where_it_is() -> None:
    core, wire = wired()
    key, session = opened(core, wire)
    doubtful = core.append(key, 1)
    wire.transmit()
    wire.serve()
    wire.cut()
    wire.connect()
    wire.server.busy = 1
    wire.transmit()
    wire.serve()
    wire.deliver()
    wire.take(core.give_up(wire.retries.pop(), OverloadedError("full")))
    assert isinstance(wire.error(doubtful), OverloadedError)
    later = core.append(key, 2)
    wire.settle()
    assert wire.forecast(later).seq == 1
    assert samples(session) == [1, 2]


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
