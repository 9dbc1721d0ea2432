"""A small server that follows the stream protocol, without sockets.

Its forecast is a function of every sample applied and of their order, so a frame that is lost,
repeated or moved shows in all later forecasts.
"""

from __future__ import annotations

import base64
import json
import struct
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

HEADER = struct.Struct("<BBHIQ")
Message = str | bytes

BAD_VALUE = 666.0  # a sample this server refuses for good
MUTE_VALUE = 777.0  # one that it applies and cannot forecast from
REPLAY = 32


@dataclass
class ModelSession:
    id: str
    channels: int
    horizon: int
    levels: list[float]
    encoding: str
    binary_version: int = 1
    owner: object = None
    history: list[Any] = field(default_factory=list)
    state: np.ndarray = field(default_factory=lambda: np.zeros(1))
    next_seq: int = 0
    replies: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=OrderedDict)

    def apply(self, samples: np.ndarray) -> None:
        for row in samples:
            self.state = 0.5 * self.state + np.where(np.isnan(row), 0.25, row)
        self.history.append(samples.tolist())

    def forecast(self, horizon: int, levels: list[float]) -> np.ndarray:
        """[channels, Q, horizon]; numbers that float32 holds exactly for small integers."""
        ahead = np.arange(horizon) / 4.0
        spread = np.asarray(levels) * 8.0
        return self.state[:, None, None] + ahead + spread[:, None]


@dataclass
class ModelServer:
    max_in_flight: int = 256
    busy: int = 0  # how many of the next messages are refused for now
    sessions: dict[str, ModelSession] = field(default_factory=dict)
    created: int = 0
    newest_binary: int = 2

    def connect(self) -> Connection:
        return Connection(self)


@dataclass(eq=False)
class Connection:
    server: ModelServer
    handles: dict[int, str] = field(default_factory=dict)

    def answer(self, message: Message) -> Message:
        """Exactly one reply a message."""
        try:
            if self.server.busy > 0:
                self.server.busy -= 1
                raise RefusedError("overloaded", retryable=True)
            return self._binary(message) if isinstance(message, bytes) else self._text(message)
        except RefusedError as refused:
            return json.dumps({"type": "error", "error": refused.body})

    def _binary(self, message: bytes) -> Message:
        version, kind, flags, handle, seq = HEADER.unpack_from(message)
        assert (version, kind, flags) == (1, 1, 0)
        session = self._find(self.handles.get(handle, ""))
        samples = np.frombuffer(message, "<f4", offset=HEADER.size).astype(np.float64)
        return self._append(session, seq, samples.reshape(-1, session.channels))

    def _text(self, text: str) -> Message:
        body = json.loads(text)
        match body["type"]:
            case "session.create":
                return self._create(body)
            case "session.attach":
                session = self._find(body["session"])
                session.encoding = body.get("encoding") or session.encoding
                session.binary_version = self._version(body)
                return self._created(session)
            case "frames.append":
                session = self._find(body["session"])
                return self._append(session, body["seq"], samples_of(body, session.channels))
            case "forecast.create":
                session = self._find(body["session"])
                values = session.forecast(
                    body.get("horizon", session.horizon), body.get("quantiles", session.levels)
                )
                levels = body.get("quantiles", session.levels)
                return forecast_text(session, session.next_seq - 1, levels, values, None)
            case "session.reset":
                session = self._find(body["session"])
                session.state = np.zeros(session.channels)
                session.history.append("reset")
            case "session.close":
                del self.server.sessions[self._find(body["session"]).id]
            case "keepalive":
                pass
            case other:
                raise RefusedError("unknown_type", other)
        return json.dumps({"type": "ack", "of": body["type"], "session": body.get("session")})

    def _create(self, body: dict[str, Any]) -> Message:
        if body.get("model") not in (None, "m"):
            raise RefusedError("model_not_found")
        self.server.created += 1
        session = ModelSession(
            id=f"s{self.server.created}",
            channels=body["channels"],
            horizon=body["horizon"],
            levels=body["quantiles"],
            encoding=body.get("encoding", "json"),
            binary_version=self._version(body),
            state=np.zeros(body["channels"]),
        )
        if body.get("prompt"):
            session.apply(np.array(body["prompt"], dtype=np.float64))
        self.server.sessions[session.id] = session
        return self._created(session)

    def _version(self, body: dict[str, Any]) -> int:
        return min(body.get("binary_version", 1), self.server.newest_binary)

    def _created(self, session: ModelSession) -> Message:
        session.owner = self
        handle = len(self.handles) + 7
        self.handles[handle] = session.id
        return json.dumps(
            {
                "type": "session.created",
                "session": session.id,
                "handle": handle,
                "model": "m",
                "channels": session.channels,
                "horizon": session.horizon,
                "quantiles": session.levels,
                "encoding": session.encoding,
                "next_seq": session.next_seq,
                "max_in_flight": self.server.max_in_flight,
            }
        )

    def _find(self, session_id: str) -> ModelSession:
        session = self.server.sessions.get(session_id)
        if session is None:
            raise RefusedError("session_not_found")
        return session

    def _append(self, session: ModelSession, seq: int, samples: np.ndarray) -> Message:
        if seq > session.next_seq:
            raise RefusedError("seq_gap", expected_seq=session.next_seq)
        if seq == session.next_seq:
            if (samples == BAD_VALUE).any():
                raise RefusedError("numerical_fault")
            session.apply(samples)
            session.next_seq += 1
            if (samples == MUTE_VALUE).any():
                raise RefusedError("numerical_fault", applied=True)
            values = session.forecast(session.horizon, session.levels)
            session.replies[seq] = values, samples[-1].copy()
            while len(session.replies) > REPLAY:
                session.replies.popitem(last=False)
        if seq not in session.replies:
            return json.dumps({"type": "ack", "of": "frames.append", "session": session.id})
        values, last = session.replies[seq]
        if session.encoding == "json":
            return forecast_text(session, seq, session.levels, values, last)
        return self._forecast_bytes(session, seq, values, last)

    def _forecast_bytes(
        self, session: ModelSession, seq: int, values: np.ndarray, last: np.ndarray
    ) -> bytes:
        handle = max(h for h, name in self.handles.items() if name == session.id)
        version = session.binary_version
        columns = [last, np.full_like(last, 0.5), 2.0 * last][: version + 1]
        body = np.concatenate([values.ravel(), np.stack(columns, axis=1).ravel()])
        return HEADER.pack(version, 2, 0, handle, seq) + body.astype("<f4").tobytes()


class RefusedError(Exception):
    def __init__(
        self, code: str, message: str = "", *, retryable: bool = False, **details: object
    ) -> None:
        super().__init__(code)
        self.body = {"code": code, "message": message or code, "retryable": retryable, **details}


def samples_of(body: dict[str, Any], channels: int) -> np.ndarray:
    values = body["values"]
    if isinstance(values, str):
        return np.frombuffer(base64.b64decode(values), "<f4").astype(float).reshape(-1, channels)
    return np.array(values, dtype=np.float64)


def forecast_text(
    session: ModelSession,
    seq: int,
    levels: list[float],
    values: np.ndarray,
    last: np.ndarray | None,
) -> str:
    scores = np.full(session.channels, np.nan) if last is None else last
    anomaly = [
        {
            "score": None if np.isnan(s) else s,
            "tail_probability": None if np.isnan(s) else 0.5,
            "surprise": None if np.isnan(s) else 2.0 * s,
        }
        for s in scores
    ]
    quantiles = {str(level): values[:, q].tolist() for q, level in enumerate(levels)}
    return json.dumps(
        {
            "type": "forecast",
            "session": session.id,
            "seq": seq,
            "horizon": values.shape[2],
            "quantiles": quantiles,
            "anomaly": anomaly,
        }
    )
