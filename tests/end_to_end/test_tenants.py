"""Two tenants on one server see only their own."""

from __future__ import annotations

import hashlib

import httpx
import numpy as np
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.end_to_end import talk
from tests.end_to_end.live import thread_server

ABSENT = "0" * 32
KEYS = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("ann", "bob")}


async def test_foreign_is_absent():
    with thread_server(api_keys=KEYS) as live:
        ann, bob = ({"Authorization": f"Bearer {name}"} for name in ("ann", "bob"))
        async with (
            connect(live.stream, additional_headers=ann, compression=None) as hers,
            connect(f"{live.stream}?api_key=bob", compression=None) as his,
            httpx.AsyncClient(base_url=live.http, headers=bob) as client,
        ):
            created = await talk.create(hers)
            session, frame = created["session"], np.ones((1, 1))
            assert (await talk.ask(hers, talk.text_frame(session, 0, frame)))["seq"] == 0
            for make in (
                lambda name: talk.text_frame(name, 0, frame),
                lambda name: {"type": "session.attach", "session": name},
                lambda name: {"type": "session.close", "session": name},
            ):
                foreign, absent = [await talk.ask(his, make(name)) for name in (session, ABSENT)]
                assert foreign["error"] == absent["error"]
                assert foreign["error"]["code"] == "session_not_found"
            stolen = await talk.ask(his, talk.binary_frame(created["handle"], 1, frame))
            assert stolen["error"]["code"] == "session_not_found"
            answers = [await client.get(f"/v1/sessions/{name}/state") for name in (session, ABSENT)]
            assert answers[0].status_code == answers[1].status_code == 404
            assert answers[0].content == answers[1].content
            assert (await talk.ask(hers, talk.text_frame(session, 1, frame)))["seq"] == 1


async def test_a_stream_without_a_key_is_closed():
    with thread_server(api_keys=KEYS) as live:
        async with connect(live.stream, compression=None) as stream:
            with pytest.raises(ConnectionClosed) as closed:
                await stream.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008
