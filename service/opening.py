"""New sessions: from a request to a session whose rows have seen the prompt."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Iterator
from functools import partial
from typing import Final

import numpy as np

from kssm.errors import InvalidInputError
from kssm.forecast.gaps import tokens_per_sample
from kssm.language.rows import wrong_kind
from kssm.runtime import Engine
from service import samples
from service.limits import check_channels, check_query
from service.residency import Residency
from service.schemas import SessionCreate
from service.sessions import Admitted, Session, SessionSettings, new_session
from service.settings import Settings
from service.vocabulary import Vocabulary

PROMPT_TOKENS: Final = 16_384
"""A long prompt goes to the engine in pieces, so that it never fills the queue alone."""


def new_id() -> str:
    """128 random bits in hex."""
    return secrets.token_hex(16)


def parse_request(
    limits: Settings, tenant: str, request: SessionCreate, vocabulary: Vocabulary | None
) -> tuple[Session, Admitted | None]:
    """The session asked for and its prompt. Raises ``InvalidInputError``."""
    if vocabulary is not None:
        return _parse_text(tenant, request, vocabulary)
    if isinstance(request.prompt, str):
        raise wrong_kind()
    check_channels(limits, request.channels)
    levels = check_query(limits, request.channels, request.horizon, request.quantiles)
    settings = SessionSettings(request.channels, request.horizon, levels, request.sample_interval)
    session = new_session(new_id(), tenant, settings)
    if request.prompt is None and request.timestamps is None:
        return session, None
    values = samples.rows(request.prompt)
    stamps = None if request.timestamps is None else samples.timestamps(request.timestamps)
    return session, session.admit_prompt(values, stamps)


def _parse_text(
    tenant: str, request: SessionCreate, vocabulary: Vocabulary
) -> tuple[Session, Admitted | None]:
    """A language session: one row, nothing to forecast."""
    if request.channels != 1:
        raise InvalidInputError("a language session has one channel")
    if request.timestamps is not None or request.sample_interval is not None:
        raise InvalidInputError("tokens have no timestamps", code="invalid_timestamps")
    session = new_session(new_id(), tenant, SessionSettings(1, 0, ()))
    if request.prompt is None:
        return session, None
    return session, session.admit_prompt(vocabulary.prompt(request.prompt), None)


async def open_session(
    engine: Engine, residency: Residency, session: Session, prompt: Admitted | None
) -> int:
    """The engine's key of the session; nothing is left behind on failure."""
    channels = session.settings.channels
    rows = await residency.open_rows(channels, partial(engine.open, channels))
    if prompt is not None:
        try:
            await _feed(engine, rows, prompt)
        except BaseException:
            await residency.release(rows)
            raise
        session.clock = prompt.clock
    return rows


async def _feed(engine: Engine, rows: int, prompt: Admitted) -> None:
    for piece in _pieces(prompt):
        dt = None if prompt.dt is None else prompt.dt[piece]
        await asyncio.wrap_future(
            engine.append(rows, prompt.values[piece], dt=dt, want_forecast=False)
        )


def _pieces(prompt: Admitted) -> Iterator[slice]:
    """Runs of samples that make about ``PROMPT_TOKENS`` tokens with their gaps filled."""
    count, channels = prompt.values.shape
    tokens = np.ones(count) if prompt.dt is None else tokens_per_sample(prompt.dt)
    piece = np.cumsum(tokens * channels) // PROMPT_TOKENS
    edges = [0, *(np.flatnonzero(np.diff(piece)) + 1).tolist(), count]
    return itertools.starmap(slice, itertools.pairwise(edges))
