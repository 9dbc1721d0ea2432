"""How long to wait before trying again."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential delays with jitter: attempt n waits ``initial * factor ** (n - 1)`` seconds,
    at most ``maximum``, shortened at random by up to the share ``jitter``.

    ``attempts`` is how often something is tried again before it fails. ``uniform`` returns
    numbers in [0, 1).
    """

    initial: float = 0.1
    factor: float = 2.0
    maximum: float = 5.0
    jitter: float = 0.5
    attempts: int = 10
    uniform: Callable[[], float] = random.random

    def delay(self, attempt: int) -> float:
        """Seconds to wait before attempt ``attempt`` (1 is the first repetition)."""
        full = min(self.maximum, self.initial * self.factor ** min(attempt - 1, 64))
        return full * (1.0 - self.jitter * self.uniform())
