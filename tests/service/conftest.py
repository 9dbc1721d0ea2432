from __future__ import annotations

import os

import pytest

from service.core import Service
from service.settings import Settings
from tests.service.fakes import FakeEngine
from tests.service.peer import Peer
from tests.service.rest import connect, serve


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


@pytest.fixture
async def client(settings):
    async with serve(settings) as app, connect(app) as made:
        yield made


@pytest.fixture
async def peer(service):
    made = Peer(service)
    yield made
    service.engine.let_go()
    made.resume()
    await made.leave()
