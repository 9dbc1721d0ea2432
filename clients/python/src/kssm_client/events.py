"""What the core tells its shell: calls that are settled, and what to wait for."""

from __future__ import annotations

from dataclasses import dataclass

from kssm_client.errors import KSSMClientError
from kssm_client.types import Forecast, SessionInfo

Result = Forecast | SessionInfo | None


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The call behind ``ticket`` has its result."""

    ticket: int
    result: Result


@dataclass(frozen=True, slots=True)
class Failed:
    """The call behind ``ticket`` failed, and only that call."""

    ticket: int
    error: KSSMClientError


@dataclass(frozen=True, slots=True)
class RetryLater:
    """The server refused for now: call ``retry(session)`` after a pause, or ``give_up``."""

    session: int
    attempt: int
    error: KSSMClientError


@dataclass(frozen=True, slots=True)
class Draining:
    """The server is about to stop; nothing more is sent on this connection."""

    time_left_s: float


Event = Succeeded | Failed | RetryLater | Draining
