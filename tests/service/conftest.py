from __future__ import annotations

import os

import pytest

from service.core import Service
from service.settings import Settings
from tests.service.fakes import FakeEngine


@pytest.fixture(autouse=True)
def no_kssm_variables(monkeypatch):
    for name in list(os.environ):
        if name.upper().startswith("KSSM_"):
            monkeypatch.delenv(name)


@pytest.fixture
def settings() -> Settings:
    return Settings(max_sessions=8, max_in_flight=8, max_message_bytes=4096, drain_timeout_s=5)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def service(settings, engine):
    made = Service(settings, engine)
    await made.start()
    yield made
    engine.let_go()
    await made.stop()
