"""The state machine against a model server: frames and their answers, one thing at a time."""

from __future__ import annotations

import numpy as np
import pytest

from kssm_client.errors import (
    OverloadedError,
    ServerError,
)
from kssm_client.types import Encoding, SessionOptions
from tests.client.model_server import BAD_VALUE, MUTE_VALUE, ModelSession
from tests.client.slow_wire import WINDOW, opened, samples, wired


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
        assert [anomaly.surprise for anomaly in forecast.anomalies] == [2 * seq, -2 * seq]


def test_a_server_of_binary_version_1_has_no_surprise() -> None:
    core, wire = wired(newest_binary=1)
    key, _ = opened(core, wire, "binary", channels=2)
    ticket = core.append(key, [3.0, -3.0])
    wire.settle()
    anomalies = wire.forecast(ticket).anomalies
    assert [(anomaly.score, anomaly.surprise) for anomaly in anomalies] == [(3, None), (-3, None)]


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


def test_a_frame_that_was_applied_though_it_failed_uses_up_its_number() -> None:
    core, wire = wired()
    key, session = opened(core, wire)
    good, mute, *rest = (core.append(key, value) for value in (1, MUTE_VALUE, 2, 3))
    wire.settle()
    error = wire.error(mute)
    assert isinstance(error, ServerError)
    assert (error.code, error.applied) == ("numerical_fault", True)
    assert samples(session) == [1, MUTE_VALUE, 2, 3]
    assert [wire.forecast(ticket).seq for ticket in (good, *rest)] == [0, 2, 3]
    later = core.append(key, 4)
    wire.settle()
    assert wire.forecast(later).seq == 4


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
