"""A message of a connection and what is needed to answer it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Payload = str | bytes


@dataclass(slots=True, eq=False)
class Exchange:
    """A message and what is needed to answer it."""

    future: asyncio.Future[Any]
    encode: Callable[[Any], Payload]
    session: str | None = None
    seq: int | None = None
    request_id: str | None = None
    frame: bool = False
    streamed: bool = False
    """Messages of its own go before its answer."""
    size: int = 0
    began: float = 0.0
