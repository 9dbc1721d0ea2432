from __future__ import annotations

import asyncio
import logging

import pytest

from kssm.errors import KSSMError
from kssm.forecast import pretrained
from kssm.forecast.testing import tiny_forecaster
from service.core import Service, build_engine, model_name
from service.settings import Settings
from tests.service.fakes import FakeEngine
from tests.service.peer import Peer


@pytest.fixture
def checkpoint(tmp_path):
    pretrained.save(tiny_forecaster(), tmp_path / "tiny")
    return tmp_path / "tiny"


def test_the_model_is_called_by_its_last_name():
    assert model_name(Settings(model="kssm-signal-base")) == "kssm-signal-base"
    assert model_name(Settings(model="/models/mine/")) == "mine"


def test_an_engine_is_built_as_the_settings_say(checkpoint):
    engine = build_engine(Settings(model=str(checkpoint), device="cpu", max_rows=300))
    assert engine.config.max_rows == 300
    assert engine.device.type == "cpu"
    assert len(engine.fingerprint) >= 32


def test_a_model_that_does_not_exist_is_an_error():
    with pytest.raises(KSSMError) as caught:
        build_engine(Settings(model="no-such-model"))
    assert caught.value.code == "model_not_found"


def test_a_device_that_does_not_exist_is_an_error(checkpoint):
    with pytest.raises(KSSMError) as caught:
        build_engine(Settings(model=str(checkpoint), device="cuda:99"))
    assert caught.value.code == "invalid_device"


async def test_a_service_loads_its_own_model(checkpoint):
    service = Service(Settings(model=str(checkpoint), device="cpu"))
    assert not service.ready
    await service.start()
    assert service.ready
    assert service.manager.model == "tiny"
    await service.stop()
    assert not service.ready


async def test_a_peer_that_does_not_read_delays_the_stop_only_so_long(caplog, monkeypatch):
    monkeypatch.setattr("service.connection.GOAWAY_PATIENCE_S", 0.01)
    service = Service(Settings(drain_timeout_s=0.05), FakeEngine())
    await service.start()
    peer = Peer(service)
    service.connections.add(peer.connection)
    await peer.create()
    peer.stall()
    peer.post({"type": "keepalive"})
    await asyncio.sleep(0)
    with caplog.at_level(logging.WARNING):
        await service.stop()
    assert "not fetched" in caplog.text
    assert peer.closed == 1012
    peer.resume()
    await peer.task


async def test_a_stop_that_cannot_save_still_closes_the_streams(tmp_path, monkeypatch):
    service = Service(Settings(store=tmp_path), FakeEngine())
    await service.start()
    peer = Peer(service)
    service.connections.add(peer.connection)
    await peer.create()

    async def broken(records):
        raise OSError("the disk is full")

    monkeypatch.setattr(
        "service.stores.sqlite.SQLiteStore.put", lambda self, records: broken(records)
    )
    with pytest.raises(OSError, match="full"):
        await service.drain()
    assert peer.closed == 1012
    await peer.task
    await service.stop()


async def test_one_session_that_cannot_be_saved_does_not_take_the_others_along(tmp_path, caplog):
    engine = FakeEngine()
    service = Service(Settings(store=tmp_path), engine)
    await service.start()
    peer = Peer(service)
    lost, kept = (await peer.create())["session"], (await peer.create())["session"]
    await peer.leave()
    engine.totals.pop(1)
    await service.stop()
    assert lost in caplog.text

    service = Service(Settings(store=tmp_path), FakeEngine())
    await service.start()
    assert service.manager.sessions == 1
    assert (await service.manager.get("default", kept)).next_seq == 0
    await service.stop()
