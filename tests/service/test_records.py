"""Sessions as records of a store."""

from __future__ import annotations

import json

import numpy as np

from kssm.runtime import ForecastResult
from service.records import decode_session, encode_session
from service.sessions import Admitted, Clock, Session, SessionSettings


def answered() -> Session:
    session = Session("a" * 32, "acme", SessionSettings(2, 3, (0.1, 0.9), 60.0))
    quantiles = np.arange(12.0).reshape(2, 2, 3)
    anomaly = np.array([[0.6, 0.25, 1.5], [np.nan] * 3])
    result = ForecastResult(quantiles, 3, (0.1, 0.9), anomaly)
    session.commit(Admitted(0, np.zeros((1, 2)), None, Clock(60.0, 5.0)), result)
    return session


def assert_same_answer(left: ForecastResult | None, right: ForecastResult | None) -> None:
    assert left is not None
    assert right is not None
    for name in ("quantiles", "tail", "score"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))


def test_a_session_comes_back_as_it_was() -> None:
    session = answered()
    again = decode_session("acme", session.id, encode_session(session))
    assert (again.settings, again.next_seq, again.clock) == (
        session.settings,
        session.next_seq,
        session.clock,
    )
    kept, original = again.replies.find(0).result, session.replies.find(0).result
    assert_same_answer(kept, original)
    assert kept is not None
    np.testing.assert_array_equal(kept.surprise, [1.5, np.nan])


def test_records_from_before_the_surprise_are_read() -> None:
    session = answered()
    body = json.loads(encode_session(session))
    body["replies"] = [packed[:6] for packed in body["replies"]]
    kept = decode_session("acme", session.id, json.dumps(body).encode()).replies.find(0).result
    assert_same_answer(kept, session.replies.find(0).result)
    assert kept is not None
    assert np.isnan(kept.surprise).all()
