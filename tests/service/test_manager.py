from __future__ import annotations

import asyncio

import numpy as np
import pytest

from kssm.errors import CapacityError, KSSMError, NumericalError
from service.core import Service
from service.manager import SessionManager
from service.schemas import SessionCreate
from service.sessions import Reply
from service.settings import Settings
from service.stores import MemoryStore, SQLiteStore
from service.wire import Frame
from tests.service.fakes import FakeEngine, until

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


@pytest.fixture
def manager(service) -> SessionManager:
    return service.manager


def manager_of(settings: Settings, engine: FakeEngine, store, key: bytes = b"k" * 32):
    return SessionManager(settings, "model", engine, store, key)


async def test_create_append_forecast(manager):
    session = await create(manager, prompt=[[1.0], [None], [2.0]], horizon=4, quantiles=[0.9, 0.1])
    reply = await manager.append("t", session, frame(0, 5.0))
    assert (reply.seq, total(reply)) == (0, 8.0)
    assert reply.result.levels == (0.1, 0.9)
    assert reply.result.quantiles.shape == (1, 2, 4)
    ahead = await manager.forecast("t", session, 7, [0.5])
    assert (ahead.seq, ahead.result.quantiles.shape) == (0, (1, 1, 7))
    assert (await manager.forecast("t", session)).result.horizon == 4


async def test_a_forecast_before_the_first_frame_has_seq_minus_one(manager):
    session = await create(manager)
    assert (await manager.forecast("t", session)).seq == -1


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"model": "other"}, "model_not_found"),
        ({"channels": 257}, "invalid_request"),
        ({"horizon": 0}, "invalid_horizon"),
        ({"horizon": 1025}, "invalid_horizon"),
        ({"quantiles": []}, "invalid_quantiles"),
        ({"quantiles": [0.5, 0.5]}, "invalid_quantiles"),
        ({"quantiles": [1.0]}, "invalid_quantiles"),
        ({"quantiles": [0.001 * n for n in range(1, 101)]}, "invalid_quantiles"),
        ({"channels": 256, "horizon": 1024}, "invalid_request"),
        ({"prompt": []}, "empty_frame"),
        ({"prompt": [[1.0, 2.0]]}, "wrong_shape"),
        ({"prompt": [[1e31]]}, "value_out_of_range"),
        ({"prompt": [[1.0]], "timestamps": [1, 2]}, "invalid_timestamps"),
        ({"prompt": [[1.0], [1.0]], "timestamps": [2, 1]}, "invalid_timestamps"),
        ({"timestamps": [1]}, "invalid_message"),
    ],
)
async def test_a_refused_session_leaves_nothing(manager, engine, fields, code):
    assert await code_of(manager.create("t", SessionCreate(**fields))) == code
    assert (manager.sessions, engine.totals) == (0, {})


async def test_messages_of_one_session_run_in_order_and_one_at_a_time(manager, engine):
    session = await create(manager)
    engine.hold()
    replies = [manager.append("t", session, frame(seq)) for seq in range(4)]
    ahead = manager.forecast("t", session)
    for _ in range(4):
        await until(lambda: engine.held > 0)
        assert engine.held == 1
        engine.let_go()
        engine.hold()
    engine.let_go()
    assert [total(await reply) for reply in replies] == [1.0, 2.0, 3.0, 4.0]
    assert total(await ahead) == 4.0


async def test_sessions_do_not_wait_for_each_other(manager, engine):
    sessions = [await create(manager) for _ in range(3)]
    engine.hold()
    replies = [manager.append("t", session, frame(0)) for session in sessions]
    assert engine.held == 3
    engine.let_go()
    assert [total(await reply) for reply in replies] == [1.0] * 3


async def test_a_failed_frame_does_not_use_up_its_seq(manager, engine):
    session = await create(manager)
    engine.fail_next = NumericalError("no")
    engine.hold()
    first, second = (manager.append("t", session, frame(seq)) for seq in (0, 1))
    engine.let_go()
    assert await code_of(first) == "numerical_fault"
    assert await code_of(second) == "seq_gap"
    assert total(await manager.append("t", session, frame(0))) == 1.0


async def test_a_frame_that_was_applied_though_its_forecast_failed_uses_up_its_seq(manager, engine):
    session = await create(manager)
    engine.fail_next = NumericalError("no", applied=True)
    assert await code_of(manager.append("t", session, frame(0))) == "numerical_fault"
    assert (await manager.append("t", session, frame(0))).result is None
    assert total(await manager.append("t", session, frame(1))) == 2.0


async def test_a_cancelled_caller_does_not_undo_a_frame(manager, engine):
    session = await create(manager)
    engine.hold()
    manager.append("t", session, frame(0)).cancel()
    engine.let_go()
    assert (await manager.get("t", session)).next_seq == 1


async def test_reset_and_fork(manager):
    session = await create(manager)
    await manager.append("t", session, frame(0, 3.0))
    copy = await manager.fork("t", session)
    assert copy.next_seq == 0
    assert (await manager.reset("t", session)).next_seq == 1
    assert total(await manager.append("t", session, frame(1, 1.0))) == 1.0
    assert total(await manager.append("t", copy.id, frame(0, 1.0))) == 4.0
    assert manager.sessions == 2


async def test_state_moves_between_sessions_of_a_tenant(manager):
    source, target = await create(manager), await create(manager)
    await manager.append("t", source, frame(0, 3.0, stamps=[10.0]))
    await manager.append("t", source, frame(1, 0.0, stamps=[12.0]))
    blob = await manager.export_state("t", source)
    await manager.append("t", target, frame(0, 9.0))
    assert (await manager.import_state("t", target, blob)).next_seq == 1
    reply = await manager.append("t", target, frame(1, 1.0, stamps=[16.0]))
    assert total(reply) == 3.0 + 2.0


async def test_a_bad_state_changes_nothing(manager):
    one, two = await create(manager), await create(manager, channels=2)
    foreign = await create(manager, tenant="u")
    await manager.append("t", one, frame(0, 3.0))
    blob = await manager.export_state("t", one)
    assert await code_of(manager.import_state("t", one, b"")) == "state_malformed"
    assert await code_of(manager.import_state("t", one, blob[:-1])) == "state_malformed"
    bent = blob[:-1] + bytes([blob[-1] ^ 1])
    assert await code_of(manager.import_state("t", one, bent)) == "state_signature"
    assert await code_of(manager.import_state("t", two, blob)) == "state_mismatch"
    assert await code_of(manager.import_state("u", foreign, blob)) == "state_foreign"
    assert total(await manager.append("t", one, frame(1))) == 4.0


async def test_foreign_absent_and_malformed_ids_are_the_same(manager):
    session = await create(manager)
    calls = [
        lambda tenant, name: manager.append(tenant, name, frame(0)),
        manager.forecast,
        manager.attach,
        manager.get,
        manager.reset,
        manager.fork,
        manager.export_state,
        lambda tenant, name: manager.import_state(tenant, name, b""),
        manager.delete,
    ]
    for call in calls:
        messages = set()
        for tenant, name in (("u", session), ("t", ABSENT), ("t", "x"), ("t", "\0'; --")):
            with pytest.raises(KSSMError) as caught:
                await call(tenant, name)
            messages.add((caught.value.code, caught.value.message, str(caught.value.details)))
        assert messages == {("session_not_found", "there is no such session", "{}")}
    assert (await manager.get("t", session)).next_seq == 0
    assert manager.sessions == 1
    assert len(manager._residency._entries) == 1


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


async def test_delete_frees_rows_and_a_place(manager, engine):
    session = await create(manager)
    await manager.delete("t", session)
    assert (manager.sessions, engine.totals) == (0, {})
    assert await code_of(manager.append("t", session, frame(0))) == "session_not_found"
    assert await code_of(manager.delete("t", session)) == "session_not_found"
    assert manager.sessions == 0


async def test_the_number_of_sessions_is_limited(manager, settings):
    sessions = [await create(manager) for _ in range(settings.max_sessions)]
    assert await code_of(manager.create("t", SessionCreate())) == "session_limit"
    assert await code_of(manager.fork("t", sessions[0])) == "session_limit"
    await manager.delete("t", sessions[0])
    await create(manager)


async def test_too_many_waiting_messages_are_refused(manager, engine, settings):
    session = await create(manager)
    engine.hold()
    count = settings.max_in_flight + 2
    replies = [manager.append("t", session, frame(seq)) for seq in range(count)]
    engine.let_go()
    assert await code_of(replies.pop()) == "overloaded"
    assert [total(await reply) for reply in replies] == [n + 1.0 for n in range(count - 1)]


async def test_a_long_prompt_goes_in_pieces(manager, monkeypatch):
    monkeypatch.setattr("service.opening.PROMPT_TOKENS", 4)
    rows = [[float(n), 1.0] for n in range(7)]
    stamps = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 8.0]
    session = await create(manager, channels=2, prompt=rows, timestamps=stamps)
    reply = await manager.forecast("t", session)
    assert reply.result is not None
    np.testing.assert_allclose(reply.result.quantiles[:, 0, 0] - 0.1, [15.0 + 6 * 3, 6.0 + 3])


async def test_a_prompt_that_fails_half_way_leaves_nothing(manager, engine, monkeypatch):
    monkeypatch.setattr("service.opening.PROMPT_TOKENS", 4)
    prompt = [[1.0]] * 5 + [[1e31]]
    refused = manager.create("t", SessionCreate(prompt=prompt))
    assert await code_of(refused) == "value_out_of_range"
    assert (manager.sessions, engine.totals) == (0, {})


async def test_an_attachment_outlives_a_rest_in_the_store(settings):
    engine = FakeEngine(max_rows=1)
    manager = manager_of(settings, engine, MemoryStore())
    session = await create(manager)
    attachment = (await manager.attach("t", session)).attachment
    await create(manager)
    assert (await manager.append("t", session, frame(0), attachment)).seq == 0


async def test_only_the_last_attachment_counts(manager):
    session = await create(manager)
    first = (await manager.attach("t", session)).attachment
    second = (await manager.attach("t", session)).attachment
    assert await code_of(manager.append("t", session, frame(0), first)) == "session_not_found"
    assert (await manager.append("t", session, frame(0), second)).seq == 0
    assert (await manager.append("t", session, frame(1))).seq == 1


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
    engine.forecaster.fingerprint = "e" * 64
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
