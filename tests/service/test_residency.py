from __future__ import annotations

import asyncio

import numpy as np
import pytest

from kssm.errors import CapacityError
from service.core import Service
from service.schemas import SessionCreate
from service.settings import Settings
from service.stores import MemoryStore, SQLiteStore
from tests.service.calls import code_of, create, frame, manager_of, total
from tests.service.fakes import FakeEngine


async def test_a_fork_without_room_leaves_nothing(settings):
    engine = FakeEngine(max_rows=1)
    manager = manager_of(settings, engine, MemoryStore())
    session = await create(manager)
    assert await code_of(manager.fork("t", session)) == "rows_exhausted"
    assert (manager.sessions, len(engine.totals)) == (1, 1)


async def test_a_session_that_cannot_be_loaded_gives_its_rows_back(settings, monkeypatch):
    engine = FakeEngine(max_rows=1)
    manager = manager_of(settings, engine, MemoryStore())
    session = await create(manager)
    other = await create(manager)
    await manager.delete("t", other)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "load", lambda key, tensors: engine.forecast(999, 1, (0.5,)))
        with pytest.raises(KeyError):
            await manager.get("t", session)
    assert engine.totals == {}
    assert (await manager.get("t", session)).next_seq == 0


async def test_an_attachment_outlives_a_rest_in_the_store(settings):
    engine = FakeEngine(max_rows=1)
    manager = manager_of(settings, engine, MemoryStore())
    session = await create(manager)
    attachment = (await manager.attach("t", session)).attachment
    await create(manager)
    assert (await manager.append("t", session, frame(0), attachment)).seq == 0


async def test_idle_sessions_rest_when_rows_run_out(settings):
    engine, store = FakeEngine(max_rows=2), MemoryStore()
    manager = manager_of(settings, engine, store)
    old, busy = await create(manager), await create(manager)
    await manager.append("t", old, frame(0, 5.0))
    await manager.append("t", busy, frame(0, 7.0))
    new = await create(manager)
    assert (await store.count(), len(engine.totals), manager.sessions) == (1, 2, 3)
    assert await store.get("t", old) is not None
    assert total(await manager.append("t", old, frame(1, 1.0))) == 6.0
    assert await store.get("t", busy) is not None
    assert total(await manager.append("t", busy, frame(0))) == 7.0
    assert total(await manager.append("t", busy, frame(1))) == 8.0
    assert total(await manager.append("t", new, frame(0))) == 1.0
    assert len(engine.totals) == 2


async def test_many_sessions_on_few_rows(settings):
    engine = FakeEngine(max_rows=3)
    manager = manager_of(settings, engine, MemoryStore())
    sessions = [await create(manager) for _ in range(8)]
    for seq in range(5):
        calls = [manager.append("t", name, frame(seq, k)) for k, name in enumerate(sessions)]
        replies = await asyncio.gather(*calls, return_exceptions=True)
        for k, (name, reply) in enumerate(zip(sessions, replies, strict=True)):
            refused = isinstance(reply, CapacityError)
            assert not refused or reply.code == "rows_exhausted"
            final = await manager.append("t", name, frame(seq, k)) if refused else reply
            assert total(final) == pytest.approx(k * (seq + 1))


async def test_rows_are_exhausted_when_nobody_is_idle(settings):
    engine = FakeEngine(max_rows=1)
    manager = manager_of(settings, engine, MemoryStore())
    session = await create(manager)
    engine.hold()
    reply = manager.append("t", session, frame(0))
    refused = manager.create("t", SessionCreate())
    assert await code_of(refused) == "rows_exhausted"
    engine.let_go()
    assert total(await reply) == 1.0
    assert manager.sessions == 1


async def test_a_session_too_wide_for_the_engine_drives_nobody_out():
    store = MemoryStore()
    manager = manager_of(Settings(max_rows=1), FakeEngine(max_rows=1), store)
    await create(manager)
    assert await code_of(manager.create("t", SessionCreate(channels=2))) == "invalid_request"
    assert (manager.sessions, await store.count()) == (1, 0)


async def test_sessions_outlive_the_process(tmp_path):
    settings = Settings(store=tmp_path)
    first = Service(settings, FakeEngine())
    await first.start()
    session = await create(first.manager, quantiles=[0.25, 0.5], horizon=3, sample_interval=2.0)
    answers = [
        await first.manager.append("t", session, frame(seq, seq + 1.5, stamps=[4.0 * (seq + 1)]))
        for seq in range(40)
    ]
    await first.stop()

    second = Service(settings, FakeEngine())
    await second.start()
    manager = second.manager
    assert manager.sessions == 1
    status = await manager.get("t", session)
    assert (status.next_seq, status.settings.quantiles) == (40, (0.25, 0.5))
    assert (status.settings.horizon, status.settings.sample_interval) == (3, 2.0)
    again = await manager.append("t", session, frame(39))
    assert again.result is not None
    for name in ("quantiles", "tail", "score"):
        before, after = getattr(answers[39].result, name), getattr(again.result, name)
        np.testing.assert_array_equal(after, before)
    assert (again.result.levels, again.result.horizon) == ((0.25, 0.5), 3)
    assert (await manager.append("t", session, frame(0))).result is None
    later = await manager.append("t", session, frame(40, 1.0, stamps=[168.0]))
    assert total(later) == pytest.approx(total(answers[39]) + 4.0)
    await manager.delete("t", session)
    await second.stop()

    third = SQLiteStore(tmp_path)
    await third.open()
    assert await third.count() == 0
    await third.close()


async def test_a_session_of_another_model_is_refused_but_can_be_deleted(tmp_path):
    settings = Settings(store=tmp_path)
    first = Service(settings, FakeEngine())
    await first.start()
    session = await create(first.manager)
    await first.stop()

    engine = FakeEngine()
    engine.fingerprint = "e" * 64
    second = Service(settings, engine)
    await second.start()
    assert await code_of(second.manager.append("t", session, frame(0))) == "state_mismatch"
    assert await code_of(second.manager.get("t", session)) == "state_mismatch"
    await second.manager.delete("t", session)
    assert second.manager.sessions == 0
    await second.stop()


async def test_a_stopping_server_finishes_what_it_accepted(tmp_path):
    engine = FakeEngine()
    service = Service(Settings(store=tmp_path), engine)
    await service.start()
    manager = service.manager
    session = await create(manager)
    engine.hold()
    replies = [manager.append("t", session, frame(seq)) for seq in range(3)]
    stopping = asyncio.create_task(service.stop())
    await asyncio.sleep(0)
    assert not service.ready
    assert await code_of(manager.append("t", session, frame(3))) == "draining"
    assert await code_of(manager.create("t", SessionCreate())) == "draining"
    engine.let_go()
    await stopping
    assert [total(await reply) for reply in replies] == [1.0, 2.0, 3.0]
    assert engine.closed

    store = SQLiteStore(tmp_path)
    await store.open()
    record = await store.get("t", session)
    assert record is not None
    assert b'"next_seq":3' in record.body
    await store.close()


async def test_unused_sessions_end_in_use_or_at_rest(settings, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("time.time", lambda: now)
    limited = settings.model_copy(update={"session_ttl_s": 100.0})
    engine, store = FakeEngine(max_rows=2), MemoryStore()
    manager = manager_of(limited, engine, store)
    resting, idle = await create(manager), await create(manager)
    used = await create(manager)
    assert (await store.count(), manager.sessions) == (1, 3)
    now = 1090.0
    await manager.append("t", used, frame(0))
    assert await manager.expire() == 0
    now = 1101.0
    assert await manager.expire() == 2
    assert (await store.count(), manager.sessions, len(engine.totals)) == (0, 1, 1)
    for gone in (resting, idle):
        assert await code_of(manager.get("t", gone)) == "session_not_found"
    assert (await manager.append("t", used, frame(1))).seq == 1


async def test_sessions_are_kept_for_ever_where_there_is_no_limit(settings, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("time.time", lambda: now)
    manager = manager_of(
        settings.model_copy(update={"session_ttl_s": 0.0}), FakeEngine(), MemoryStore()
    )
    session = await create(manager)
    now = 1e12
    assert await manager.expire() == 0
    assert (await manager.get("t", session)).next_seq == 0


async def test_the_service_looks_for_unused_sessions_by_itself(settings):
    engine = FakeEngine()
    service = Service(settings.model_copy(update={"session_ttl_s": 0.04}), engine)
    await service.start()
    await create(service.manager)
    for _ in range(500):
        if not service.manager.sessions:
            break
        await asyncio.sleep(0.01)
    assert service.manager.sessions == 0
    await service.stop()
    assert engine.totals == {}
