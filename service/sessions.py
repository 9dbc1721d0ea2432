"""A session without I/O: sequence numbers, the clock and the answers already given."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from kssm.errors import ConflictError, InvalidInputError
from kssm.forecast.gaps import thin
from kssm.runtime import ForecastResult
from kssm.runtime.validation import check_values
from service.samples import Float32, Float64
from service.wire import Frame

REPLIES_KEPT: Final = 32
REPLY_VALUES_KEPT: Final = 131_072
"""Bounds what the kept answers of one session may hold together (1 MiB of float64)."""


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What a session was created with."""

    channels: int = 1
    horizon: int = 24
    quantiles: tuple[float, ...] = (0.1, 0.5, 0.9)
    sample_interval: float | None = None


@dataclass(frozen=True, slots=True)
class Clock:
    """Turns timestamps into steps. ``interval`` is learnt when it is not given.

    ``last`` is the newest sample's time, ``elapsed`` how many intervals before it the newest
    sample lies that the model has read (``kssm.forecast.gaps.thin``).
    """

    interval: float | None = None
    last: float | None = None
    elapsed: float = 0.0

    def advance(self, stamps: Float64 | None, samples: int) -> tuple[Float64 | None, Clock]:
        """Steps [samples] in sample intervals (None: all 1) and the clock after them.

        Raises ``InvalidInputError`` (`invalid_timestamps`) unless ``stamps`` are one a sample,
        finite and strictly increasing, also against the last one known.
        """
        if stamps is None:
            return None, self._coast(samples)
        if len(stamps) != samples:
            raise _bad_clock(f"{samples} samples need {samples} timestamps, not {len(stamps)}")
        known = stamps if self.last is None else np.concatenate(([self.last], stamps))
        with np.errstate(over="ignore", invalid="ignore"):
            gaps = np.diff(known)
        if not (np.isfinite(known).all() and (gaps > 0).all() and np.isfinite(gaps).all()):
            raise _bad_clock("timestamps must be finite and strictly increasing")
        interval = self.interval or _infer(gaps, samples)
        after = Clock(interval, float(stamps[-1]), self.elapsed)
        return (None if interval is None else _steps(gaps, interval, samples)), after

    def read(self, values: Float64, steps: Float64 | None) -> tuple[Float64, Float64 | None, Clock]:
        """The samples for the model to read, of those that ``advance`` gave ``steps`` to.

        None are left when all came too soon after the last one. Returns them, their steps and
        the clock after them. Raises ``InvalidInputError`` for bad values that are left out; the
        others are the engine's to check.
        """
        if steps is None:
            return values, None, replace(self, elapsed=0.0) if self.elapsed else self
        kept, steps, elapsed = thin(steps, self.elapsed)
        if not kept.all():
            check_values(values, values.shape[1])
        return values[kept], steps, replace(self, elapsed=elapsed)

    def _coast(self, samples: int) -> Clock:
        if self.last is None:
            return self
        if self.interval is None:
            return Clock()
        return Clock(self.interval, self.last + samples * self.interval)


@dataclass(frozen=True, slots=True)
class Status:
    """A session at one moment."""

    id: str
    settings: SessionSettings
    next_seq: int
    attachment: int


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a frame; ``result`` is None where it is no longer known."""

    seq: int
    result: ForecastResult | None


@dataclass(frozen=True, slots=True)
class Admitted:
    """A frame whose turn it is: what the model reads of it (float64 [samples, channels], possibly
    nothing), the steps of that and the clock after the frame."""

    seq: int
    values: Float64
    dt: Float64 | None
    clock: Clock


class ReplyCache:
    """The newest answers, at most 32 and, but for the last, bounded in size."""

    __slots__ = ("_replies", "_values")

    def __init__(self, replies: Iterable[Reply] = ()) -> None:
        self._replies: deque[Reply] = deque()
        self._values = 0
        for reply in replies:
            self.add(reply)

    def __iter__(self) -> Iterator[Reply]:
        return iter(self._replies)

    def add(self, reply: Reply) -> None:
        """Keep ``reply``, whose ``seq`` follows the last one's; forget what no longer fits."""
        self._replies.append(reply)
        self._values += _size(reply)
        while len(self._replies) > REPLIES_KEPT or (
            self._values > REPLY_VALUES_KEPT and len(self._replies) > 1
        ):
            self._values -= _size(self._replies.popleft())

    def find(self, seq: int) -> Reply:
        """The answer to frame ``seq``, without a result when it is forgotten."""
        first = self._replies[0].seq if self._replies else seq + 1
        return self._replies[seq - first] if seq >= first else Reply(seq, None)


@dataclass(slots=True)
class Session:
    """The state machine of one stream: which frame is next and what was answered."""

    id: str
    tenant: str
    settings: SessionSettings
    next_seq: int = 0
    clock: Clock = Clock()
    replies: ReplyCache = field(default_factory=ReplyCache)
    attachments: int = 0
    """Grows with every attach, which ends the bindings made before."""

    def status(self) -> Status:
        """The session now."""
        return Status(self.id, self.settings, self.next_seq, self.attachments)

    def admit(self, frame: Frame) -> Admitted | Reply:
        """The frame ready for the engine, or the old answer to a duplicate.

        Raises ``ConflictError`` (`seq_gap`, with ``expected_seq``) or ``InvalidInputError``.
        Nothing changes until ``commit``.
        """
        if frame.seq < self.next_seq:
            return self.replies.find(frame.seq)
        if frame.seq > self.next_seq:
            message = f"expected seq {self.next_seq}, got {frame.seq}"
            raise ConflictError(message, code="seq_gap", expected_seq=self.next_seq)
        values = shape_samples(frame.values, self.settings.channels)
        dt, clock = self.clock.advance(frame.timestamps, len(values))
        return Admitted(frame.seq, *clock.read(values, dt))

    def admit_prompt(self, values: Float64, stamps: Float64 | None) -> Admitted:
        """The history to start from, ready for the engine. Raises ``InvalidInputError``."""
        shaped = shape_samples(values, self.settings.channels)
        dt, clock = self.clock.advance(stamps, len(shaped))
        return Admitted(-1, *clock.read(shaped, dt))

    def commit(self, admitted: Admitted, result: ForecastResult | None) -> Reply:
        """The frame was applied: its seq is used up and its answer, if any, kept."""
        self.next_seq = admitted.seq + 1
        self.clock = admitted.clock
        reply = Reply(admitted.seq, result)
        self.replies.add(reply)
        return reply

    def reset(self) -> None:
        """Forget the signal's clock; ``next_seq`` runs on."""
        self.clock = Clock(self.settings.sample_interval)

    def restore_clock(self, clock: Clock) -> None:
        """Continue from an imported state's clock, with this session's own interval if set."""
        interval = self.settings.sample_interval or clock.interval
        self.clock = replace(clock, interval=interval)

    def fork(self, session_id: str) -> Session:
        """A session that continues the same signal under its own ``seq`` from 0."""
        return Session(session_id, self.tenant, self.settings, clock=self.clock)


def new_session(session_id: str, tenant: str, settings: SessionSettings) -> Session:
    """A session that has seen nothing."""
    return Session(session_id, tenant, settings, clock=Clock(settings.sample_interval))


def shape_samples(values: Float64 | Float32, channels: int) -> Float64:
    """[samples, channels] float64; flat values are cut into rows. Raises ``InvalidInputError``."""
    if values.ndim == 1:
        if len(values) % channels:
            message = f"{len(values)} values are not whole samples of {channels} channels"
            raise InvalidInputError(message, code="truncated_frame")
        values = values.reshape(-1, channels)
    elif values.shape[1] != channels:
        message = f"a row has {values.shape[1]} values, the session {channels} channels"
        raise InvalidInputError(message, code="wrong_shape")
    return values.astype(np.float64, copy=False)


def _infer(gaps: Float64, samples: int) -> float | None:
    """The median step within a message of several samples, else the one difference known."""
    within = gaps[len(gaps) - (samples - 1) :] if samples > 1 else gaps
    return float(np.median(within)) if len(within) else None


def _steps(gaps: Float64, interval: float, samples: int) -> Float64:
    with np.errstate(over="ignore"):
        steps = gaps / interval
    if not (np.isfinite(steps).all() and (steps > 0).all()):
        raise _bad_clock("timestamps are out of proportion to the sample interval")
    return steps if len(steps) == samples else np.concatenate(([1.0], steps))


def _size(reply: Reply) -> int:
    return 0 if reply.result is None else int(reply.result.quantiles.size)


def _bad_clock(message: str) -> InvalidInputError:
    return InvalidInputError(message, code="invalid_timestamps")
