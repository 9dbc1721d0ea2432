from __future__ import annotations

import asyncio

from tests.service.fakes import until
from tests.service.peer import Peer, append, binary


async def test_too_many_unanswered_messages(peer, service):
    session = (await peer.create())["session"]
    service.engine.hold()
    for seq in range(12):
        peer.post(append(session, seq))
    await until(lambda: not peer.unread)
    service.engine.let_go()
    replies = [await peer.read() for _ in range(12)]
    assert [reply["type"] for reply in replies] == ["forecast"] * 8 + ["error"] * 4
    assert {reply["error"]["code"] for reply in replies[8:]} == {"overloaded"}
    assert all(reply["error"]["retryable"] for reply in replies[8:])
    assert [reply["seq"] for reply in replies] == list(range(12))
    assert (await peer.ask(append(session, 8)))["type"] == "forecast"


async def test_a_peer_that_does_not_read_is_not_read_from(peer):
    peer.stall()
    for _ in range(100):
        peer.post({"type": "keepalive"})
    for _ in range(300):
        await asyncio.sleep(0)
    assert peer.unread == 100 - 16
    peer.resume()
    kinds = [(await peer.read())["type"] for _ in range(100)]
    assert set(kinds) == {"ack", "error"}


async def test_a_peer_with_much_unanswered_is_not_read_from(peer, service, settings):
    session = (await peer.create())["session"]
    service.engine.hold()
    values = [1.0] * (settings.max_message_bytes * 2 // 3)
    for seq in range(8):
        peer.post(append(session, seq, *values))
    for _ in range(300):
        await asyncio.sleep(0)
    assert peer.unread > 0
    service.engine.let_go()
    assert [(await peer.read())["type"] for _ in range(8)] == ["forecast"] * 8


async def test_a_lost_connection_does_not_lose_the_session(service):
    first, second = Peer(service), Peer(service)
    session = (await first.create(encoding="binary", horizon=1, quantiles=[0.5]))["session"]
    service.engine.hold()
    first.post(append(session, 0, 2.0))
    first.post(append(session, 1, 3.0))
    await until(lambda: service.engine.held > 0)
    await until(lambda: not first.unread)
    await first.leave()
    second.post({"type": "session.attach", "session": session, "request_id": "r"})
    service.engine.let_go()
    attached = await second.read()
    assert (attached["type"], attached["session"], attached["attached"]) == (
        "session.created",
        session,
        True,
    )
    assert (attached["next_seq"], attached["encoding"], attached["request_id"]) == (2, "json", "r")
    assert (await second.ask(append(session, 1)))["quantiles"] == {"0.5": [[5.5]]}
    assert (await second.ask(append(session, 2)))["quantiles"] == {"0.5": [[6.5]]}
    await second.leave()


async def test_attach_takes_the_handle_over(service):
    first, second = Peer(service), Peer(service)
    created = await first.create()
    session, old = created["session"], created["handle"]
    assert (await first.ask(binary(old, 0, 1.0)))["type"] == "forecast"
    new = (await second.ask({"type": "session.attach", "session": session}))["handle"]
    refused = await first.ask(binary(old, 1, 1.0))
    assert (refused["error"]["code"], refused["session"]) == ("session_not_found", session)
    assert (await second.ask(binary(new, 1, 1.0)))["type"] == "forecast"
    again = await first.ask({"type": "session.attach", "session": session})
    assert (again["handle"], again["next_seq"]) == (old, 2)
    assert (await first.ask(binary(old, 2, 1.0)))["type"] == "forecast"
    for peer in (first, second):
        await peer.leave()


async def test_attach_tells_the_seq_of_its_own_turn(peer, service):
    session = (await peer.create())["session"]
    peer.post(append(session, 0))
    peer.post({"type": "session.attach", "session": session})
    peer.post(append(session, 1))
    kinds = [await peer.read() for _ in range(3)]
    assert kinds[1]["next_seq"] == 1
    assert [kind["type"] for kind in kinds] == ["forecast", "session.created", "forecast"]


async def test_tenants_see_the_same_nothing(service):
    ours, theirs = Peer(service, "a"), Peer(service, "b")
    session = (await ours.create())["session"]
    for kind in ("session.attach", "forecast.create", "session.reset", "session.close"):
        foreign = await theirs.ask({"type": kind, "session": session})
        absent = await theirs.ask({"type": kind, "session": "0" * 32})
        assert foreign["error"] == absent["error"]
        assert foreign["error"]["code"] == "session_not_found"
    foreign, absent = await theirs.ask(append(session, 0)), await theirs.ask(append("0" * 32, 0))
    assert foreign["error"] == absent["error"]
    assert (await ours.ask(append(session, 0)))["type"] == "forecast"
    for peer in (ours, theirs):
        await peer.leave()


async def test_a_stopping_service_says_so_and_answers_what_it_accepted(service):
    peer = Peer(service)
    service.connections.add(peer.connection)
    session = (await peer.create())["session"]
    service.engine.hold()
    peer.post(append(session, 0))
    await until(lambda: service.engine.held > 0)
    draining = asyncio.create_task(service.drain())
    assert await peer.read() == {"type": "goaway", "time_left_s": 5.0}
    peer.post(append(session, 1))
    peer.post({"type": "session.create"})
    service.engine.let_go()
    kinds = [await peer.read() for _ in range(3)]
    assert kinds[0]["type"] == "forecast"
    assert [kind["error"]["code"] for kind in kinds[1:]] == ["draining"] * 2
    assert all(kind["error"]["retryable"] for kind in kinds[1:])
    await draining
    await peer.task
    assert peer.closed == 1012
