"""What the engine is asked to do, after validation."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kssm.forecast.anomaly import Alarm, AnomalyMonitor
from kssm.language.sampling import Sampling
from kssm.runtime.admission import Lane
from kssm.runtime.arena import Rows
from kssm.runtime.contract import Floats, State
from kssm.runtime.validation import Query


@dataclass(frozen=True, eq=False, slots=True)
class ForecastResult:
    """A session's forecast after a job.

    ``quantiles`` is [channels, Q, horizon] (Q = horizon = 0 when none was wanted), ``anomaly``
    [channels, 3] holds ``score``, ``tail`` and ``surprise``, NaN = no score.
    """

    quantiles: Floats
    horizon: int
    levels: tuple[float, ...]
    anomaly: Floats

    @property
    def score(self) -> Floats:
        """[channels] negative decimal logarithm of ``tail``."""
        return self.anomaly[:, 0]

    @property
    def tail(self) -> Floats:
        """[channels] smallest calibrated tail probability of the job's samples.

        Against the forecasts made before them (``kssm.forecast.anomaly``).
        """
        return self.anomaly[:, 1]

    @property
    def surprise(self) -> Floats:
        """[channels] largest running surprise among the job's samples."""
        return self.anomaly[:, 2]


def cut(state: State, start: int, stop: int) -> State:
    """Rows ``start`` ... ``stop`` - 1 of a state."""
    return {name: tensor[start:stop] for name, tensor in state.items()}


class Held(NamedTuple):
    """Rows ``start`` ... ``stop`` - 1 of a state that several jobs share, cut out when needed."""

    state: Callable[[], State]
    start: int
    stop: int

    def rows(self) -> State:
        return cut(self.state(), self.start, self.stop)


@dataclass(eq=False, slots=True)
class Session:
    """A stream as the device thread sees it."""

    key: int
    rows: Rows
    queue: deque[SessionJob] = field(default_factory=deque)
    active: bool = False
    quarantined: bool = False
    channels: int = field(init=False)

    def __post_init__(self) -> None:
        self.channels = len(self.rows)


@dataclass(eq=False, kw_only=True, slots=True)
class Job:
    """A promise to a caller. ``cost`` tokens of ``lane`` are taken until it is settled."""

    future: Future[Any] = field(default_factory=Future)
    lane: Lane = Lane.STREAM
    cost: int = 1


@dataclass(eq=False, kw_only=True, slots=True)
class Open(Job):
    """Create a session of ``channels`` rows; the result is its key."""

    channels: int


@dataclass(eq=False, kw_only=True, slots=True)
class SessionJob(Job):
    """A job that waits for the session's earlier ones."""

    session: Session


@dataclass(eq=False, kw_only=True, slots=True)
class Control(SessionJob):
    """Something done to a session at once; ``action`` runs on the device thread."""

    action: Callable[[Session], Any]


@dataclass(eq=False, kw_only=True, slots=True)
class Release(Control):
    """The session's last job: it runs even when its future was cancelled."""


@dataclass(eq=False, kw_only=True, slots=True)
class Read(SessionJob):
    """A forecast from the state as it is."""

    query: Query


@dataclass(eq=False, kw_only=True, slots=True)
class Append(SessionJob):
    """Tokens [tokens, channels] to consume, then a forecast if ``query`` is set.

    ``dt`` [tokens] are their steps, None = 1 each.
    ``said`` is the most extreme that monitors said of its samples so far ([channels, 2], smallest
    probability and largest surprise; None before the first one). ``held`` is, for stepwise work,
    the rows before the job (what a failure restores), and for bulk work the rows so far (what
    success writes), as is ``monitor``.
    """

    values: Floats
    dt: Floats | None
    query: Query | None
    said: Floats | None = None
    held: Held | None = None
    monitor: AnomalyMonitor | None = None

    @property
    def tokens(self) -> int:
        return len(self.values)

    def steps(self, start: int, stop: int) -> Floats:
        """The steps of tokens ``start`` ... ``stop`` - 1."""
        return np.ones(stop - start) if self.dt is None else self.dt[start:stop]

    @property
    def stepwise(self) -> bool:
        return self.lane is Lane.STREAM


@dataclass(frozen=True)
class GenerationResult:
    """Tokens that a session generated, all of them in its state, and why it ended."""

    tokens: tuple[int, ...]
    reason: Literal["length", "stop", "cancelled"]


def _ignore(_number: int, _token: int) -> None:
    """Nobody listens."""


def _never(_token: int) -> bool:
    return False


@dataclass(frozen=True, eq=False)
class Listener:
    """Who hears a generation's tokens and may end it.

    ``emit`` hears each token with its number, ``stop`` says whether a token is the last one; both
    are called on the device thread and must be short. Setting ``cancelled`` ends the text before
    its next token.
    """

    emit: Callable[[int, int], None] = _ignore
    stop: Callable[[int], bool] = _never
    cancelled: threading.Event = field(default_factory=threading.Event)


@dataclass(eq=False, kw_only=True, slots=True)
class Generate(Append):
    """Tokens to draw, one a tick, each of which is consumed before the next is drawn.

    ``values`` are filled as they are drawn.
    """

    rules: Sampling
    seed: int
    listener: Listener
    drawn: list[int] = field(default_factory=list[int])

    def result(self, reason: Literal["length", "stop", "cancelled"]) -> GenerationResult:
        """The tokens so far."""
        return GenerationResult(tuple(self.drawn), reason)


@dataclass(frozen=True, eq=False)
class Prediction:
    """Forecasts of n series: ``quantiles`` [n, horizon, Q]; ``alarms``, if they were wanted, say
    for every sample of each series what an anomaly monitor says, [samples] each."""

    quantiles: Floats
    alarms: tuple[Alarm, ...] = ()


@dataclass(eq=False, slots=True)
class Watch:
    """The monitor of a series, which of its tokens are samples, and what it has said so far."""

    samples: NDArray[np.int64]
    monitor: AnomalyMonitor = field(default_factory=lambda: AnomalyMonitor(1))
    said: list[Alarm] = field(default_factory=list[Alarm])

    def take(self, values: Floats, tail: Floats) -> None:
        """Tokens [n] and their tails [n]."""
        self.said.append(self.monitor.watch(values[:, None], tail[:, None]))

    def alarm(self) -> Alarm:
        """Of every sample, [samples]."""
        columns = zip(*self.said, strict=True)
        return Alarm(*(np.concatenate(column)[self.samples, 0] for column in columns))


@dataclass(eq=False, kw_only=True, slots=True)
class Predict(Job):
    """Forecasts of whole series [tokens, 1], batch after batch (``batches`` index ``series``).

    ``watches`` has one entry a series, or none.
    """

    series: list[tuple[Floats, Floats]]
    query: Query
    batches: deque[list[int]]
    quantiles: Floats
    watches: list[Watch]
    state: State | None = None
