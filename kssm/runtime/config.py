"""The engine's limits and policy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from kssm.errors import InvalidInputError
from kssm.forecast.gaps import MAX_GAP
from kssm.runtime.contract import StateSpec

_FIRST_BYTES: Final = 1 << 28
"""What an arena takes at its start, at most; it grows as sessions come."""


@dataclass(frozen=True)
class EngineConfig:
    """Tokens count once a row.

    ``initial_rows`` and ``max_rows`` size the arena. ``prefill_tokens`` is a tick's budget for
    prompts and predictions, ``chunk_tokens`` the length of one chunk and ``prefill_min`` the
    shortest message that is run in chunks. ``max_pending`` bounds the tokens that wait (streams
    and bulk work each) and one message; ``max_gap`` the longest gap, in sample intervals.
    ``graph_rows`` is the largest batch of steps that is captured as a CUDA graph.
    """

    max_rows: int = 65536
    initial_rows: int = 256
    prefill_tokens: int = 8192
    chunk_tokens: int = 512
    prefill_min: int = 16
    max_pending: int = 65536
    max_gap: int = MAX_GAP
    max_horizon: int = 16384
    graph_rows: int = 2048

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise InvalidInputError(f"{name} must be at least 1")


def config_for(spec: StateSpec, max_rows: int) -> EngineConfig:
    """A configuration whose arena starts small where a row's state is large."""
    row = sum(math.prod(shape) * dtype.itemsize for shape, dtype in spec.values())
    rows = max(1, min(EngineConfig.initial_rows, _FIRST_BYTES // row))
    return EngineConfig(max_rows=max_rows, initial_rows=rows)
