"""A session as a store's record: everything but the engine's state, as JSON, exactly."""

from __future__ import annotations

from typing import Any

import numpy as np

from kssm.runtime import ForecastResult
from service.sessions import Clock, Reply, ReplyCache, Session, SessionSettings
from service.wire import dumps, loads


def encode_session(session: Session) -> bytes:
    """The session's settings, position, clock and kept answers."""
    settings = session.settings
    return dumps(
        {
            "channels": settings.channels,
            "horizon": settings.horizon,
            "quantiles": settings.quantiles,
            "sample_interval": settings.sample_interval,
            "next_seq": session.next_seq,
            "attachments": session.attachments,
            "clock": [session.clock.interval, session.clock.last, session.clock.elapsed],
            "replies": [_pack(reply) for reply in session.replies],
        }
    )


def decode_session(tenant: str, session_id: str, body: bytes) -> Session:
    """The session that ``encode_session`` wrote."""
    fields = loads(body)
    settings = SessionSettings(
        fields["channels"],
        fields["horizon"],
        tuple(fields["quantiles"]),
        fields["sample_interval"],
    )
    replies = ReplyCache(_unpack(packed) for packed in fields["replies"])
    return Session(
        session_id,
        tenant,
        settings,
        next_seq=fields["next_seq"],
        clock=Clock(*fields["clock"]),
        replies=replies,
        attachments=fields["attachments"],
    )


def clock_to_meta(clock: Clock) -> dict[str, str]:
    """A clock as the strings that travel with an exported state."""
    fields = {
        "clock_interval": clock.interval,
        "clock_last": clock.last,
        "clock_elapsed": clock.elapsed or None,
    }
    return {name: repr(value) for name, value in fields.items() if value is not None}


def clock_from_meta(meta: dict[str, str]) -> Clock:
    """The clock that ``clock_to_meta`` wrote."""
    interval, last = meta.get("clock_interval"), meta.get("clock_last")
    return Clock(
        None if interval is None else float(interval),
        None if last is None else float(last),
        float(meta.get("clock_elapsed", 0.0)),
    )


def _pack(reply: Reply) -> list[Any]:
    result = reply.result
    if result is None:
        return [reply.seq]
    columns = (result.quantiles, result.tail, result.score, result.surprise)
    arrays = [np.ascontiguousarray(array) for array in columns]
    return [reply.seq, result.horizon, result.levels, *arrays]


def _unpack(packed: list[Any]) -> Reply:
    if len(packed) == 1:
        return Reply(packed[0], None)
    seq, horizon, levels, quantiles, tail, score, *later = packed
    surprise = later[0] if later else [None] * len(tail)  # records from before there was one
    ahead = np.array(quantiles, dtype=np.float64)
    anomaly = np.array([score, tail, surprise], dtype=np.float64).T
    return Reply(seq, ForecastResult(ahead, horizon, tuple(levels), anomaly))
