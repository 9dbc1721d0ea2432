"""The engine's limits and policy."""

from __future__ import annotations

from dataclasses import dataclass

from kssm.errors import InvalidInputError
from kssm.forecast.gaps import MAX_GAP


@dataclass(frozen=True)
class EngineConfig:
    """Tokens count once a row.

    ``initial_rows`` and ``max_rows`` size the arena. ``prefill_tokens`` is a tick's budget for
    prompts and predictions, ``chunk_tokens`` the length of one chunk and ``prefill_min`` the
    shortest message that is run in chunks. ``max_pending`` bounds the tokens that wait (streams
    and bulk work each) and one message; ``max_gap`` the longest gap, in sample intervals.
    """

    max_rows: int = 65536
    initial_rows: int = 256
    prefill_tokens: int = 8192
    chunk_tokens: int = 512
    prefill_min: int = 16
    max_pending: int = 65536
    max_gap: int = MAX_GAP
    max_horizon: int = 16384

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise InvalidInputError(f"{name} must be at least 1")
