"""Short words for talking to a session manager."""

from __future__ import annotations

import numpy as np
import pytest

from kssm.errors import KSSMError
from service.manager import SessionManager
from service.schemas import SessionCreate
from service.sessions import Reply
from service.settings import Settings
from service.wire import Frame
from tests.service.fakes import FakeEngine

ABSENT = "0" * 32


def frame(seq: int, value: float = 1.0, stamps: list[float] | None = None) -> Frame:
    times = None if stamps is None else np.array(stamps)
    return Frame(seq, np.array([[value]]), times)


def total(reply: Reply) -> float:
    """What the fake engine's session has seen so far."""
    assert reply.result is not None
    return round(float(reply.result.quantiles[0, 0, 0]) - reply.result.levels[0], 9)


async def code_of(future) -> str:
    with pytest.raises(KSSMError) as caught:
        await future
    return caught.value.code


async def create(manager: SessionManager, tenant: str = "t", **fields) -> str:
    return (await manager.create(tenant, SessionCreate(**fields))).id


def manager_of(settings: Settings, engine: FakeEngine, store, key: bytes = b"k" * 32):
    return SessionManager(settings, "model", engine, store, key)
