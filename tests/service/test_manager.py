from __future__ import annotations

import asyncio

import numpy as np
import pytest

from kssm.errors import KSSMError, NumericalError
from service.manager import SessionManager
from service.schemas import SessionCreate
from service.wire import Frame
from tests.service.calls import ABSENT, code_of, create, frame, total
from tests.service.fakes import until


@pytest.fixture
def manager(service) -> SessionManager:
    return service.manager


async def test_create_append_forecast(manager):
    session = await create(manager, prompt=[[1.0], [None], [2.0]], horizon=4, quantiles=[0.9, 0.1])
    reply = await manager.append("t", session, frame(0, 5.0))
    assert (reply.seq, total(reply)) == (0, 8.0)
    assert reply.result.levels == (0.1, 0.9)
    assert reply.result.quantiles.shape == (1, 2, 4)
    ahead = await manager.forecast("t", session, 7, [0.5])
    assert (ahead.seq, ahead.result.quantiles.shape) == (0, (1, 1, 7))
    assert (await manager.forecast("t", session)).result.horizon == 4


async def test_a_frame_that_is_not_read_is_answered_from_the_state(manager):
    session = await create(manager, prompt=[[1.0], [2.0]], timestamps=[0, 1], sample_interval=1.0)
    early = Frame(0, np.array([[9.0]]), np.array([1.25]))
    reply = await manager.append("t", session, early)
    assert (reply.seq, total(reply)) == (0, 3.0)
    again = await manager.append("t", session, early)
    assert total(again) == 3.0
    late = await manager.append("t", session, Frame(1, np.array([[4.0]]), np.array([2.0])))
    assert (late.seq, total(late)) == (1, 7.0)


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
        ({"prompt": "Once upon a time"}, "wrong_model_kind"),
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


async def test_settling_waits_for_a_crowded_session(manager, engine, settings):
    session = await create(manager)
    engine.hold()
    count = settings.max_in_flight + 1
    replies = [manager.append("t", session, frame(seq)) for seq in range(count)]
    settled = asyncio.ensure_future(manager.settle())
    await asyncio.sleep(0)
    assert not settled.done()
    engine.let_go()
    await settled
    assert [reply.result().seq for reply in replies] == list(range(count))


async def test_settling_waits_for_sessions_that_are_being_made(manager, engine):
    engine.hold()
    creation = manager.create("t", SessionCreate(prompt=[[2.0]]))
    settled = asyncio.ensure_future(manager.settle())
    await until(lambda: engine.held > 0)
    manager.refuse()
    assert not settled.done()
    engine.let_go()
    await settled
    assert creation.result().id in {name for _, name in manager._residency._entries}


async def test_a_long_prompt_goes_in_pieces(manager, monkeypatch):
    monkeypatch.setattr("service.opening.PROMPT_TOKENS", 4)
    rows = [[float(n), 1.0] for n in range(7)]
    stamps = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 8.0]
    session = await create(manager, channels=2, prompt=rows, timestamps=stamps)
    reply = await manager.forecast("t", session)
    assert reply.result is not None
    np.testing.assert_allclose(reply.result.quantiles[:, 0, 0] - 0.1, [15.0 + 6 * 3, 6.0 + 3])


async def test_a_piece_of_a_prompt_has_its_gaps_counted(manager, engine, monkeypatch):
    monkeypatch.setattr("service.opening.PROMPT_TOKENS", 16)
    append, pieces = engine.append, []

    def noted(key, values, **options):
        pieces.append(len(values))
        return append(key, values, **options)

    monkeypatch.setattr(engine, "append", noted)
    stamps = [0.0, 1.0, 11.0, 21.0, 31.0, 32.0, 33.0]
    await create(manager, prompt=[[1.0]] * 7, timestamps=stamps, sample_interval=1.0)
    assert sum(pieces) == 7
    assert len(pieces) == 3


async def test_a_prompt_that_fails_half_way_leaves_nothing(manager, engine, monkeypatch):
    monkeypatch.setattr("service.opening.PROMPT_TOKENS", 4)
    prompt = [[1.0]] * 5 + [[1e31]]
    refused = manager.create("t", SessionCreate(prompt=prompt))
    assert await code_of(refused) == "value_out_of_range"
    assert (manager.sessions, engine.totals) == (0, {})


async def test_only_the_last_attachment_counts(manager):
    session = await create(manager)
    first = (await manager.attach("t", session)).attachment
    second = (await manager.attach("t", session)).attachment
    assert await code_of(manager.append("t", session, frame(0), first)) == "session_not_found"
    assert (await manager.append("t", session, frame(0), second)).seq == 0
    assert (await manager.append("t", session, frame(1))).seq == 1
