"""SIGTERM: what was accepted is answered and kept, and a restart goes on as if nothing happened."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.end_to_end import talk
from tests.end_to_end.live import Live, ProcessServer, thread_server

FRAMES = 200
BEFORE = 60
PIPELINED = 100


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    rng = np.random.default_rng(3)
    return rng.normal(size=(FRAMES, 1)).cumsum(axis=0)


async def undisturbed(values: np.ndarray) -> list[str]:
    """Every forecast of a run that nothing interrupts."""
    with thread_server() as live:
        async with connect(live.stream, compression=None) as stream:
            session = (await talk.create(stream))["session"]
            return [await answer(stream, session, seq, values) for seq in range(FRAMES)]


def essence(reply: dict) -> str:
    assert reply["type"] == "forecast", reply
    return json.dumps([reply["seq"], reply["quantiles"], reply["anomaly"]])


async def answer(stream, session: str, seq: int, values: np.ndarray) -> str:
    return essence(await talk.ask(stream, talk.text_frame(session, seq, values[[seq]])))


async def rest_of(stream: ClientConnection) -> list[dict]:
    """Everything the server says until it closes."""
    said: list[dict] = []
    with suppress(ConnectionClosed):
        while True:
            said.append(await talk.read(stream))
    return said


async def interrupted(server: ProcessServer, values: np.ndarray) -> tuple[str, list[str]]:
    """The session and its forecasts until SIGTERM, sent while many frames are under way."""
    async with connect(server.live.stream, compression=None) as stream:
        session = (await talk.create(stream))["session"]
        answers = [await answer(stream, session, seq, values) for seq in range(BEFORE)]
        for seq in range(BEFORE, BEFORE + PIPELINED):
            await stream.send(talk.text_frame(session, seq, values[[seq]]))
        server.terminate()
        said = await rest_of(stream)
        assert stream.close_code == 1012
    kinds = [reply["type"] for reply in said]
    assert kinds.count("goaway") == 1
    late = [reply["error"]["code"] for reply in said if reply["type"] == "error"]
    assert set(late) <= {"draining"}
    answers += [essence(reply) for reply in said if reply["type"] == "forecast"]
    assert len(answers) + len(late) == BEFORE + PIPELINED
    return session, answers


async def resumed(live: Live, session: str, values: np.ndarray, before: list[str]) -> list[str]:
    """The forecasts after the restart; what was answered before is answered again."""
    async with connect(live.stream, compression=None) as stream:
        attached = await talk.ask(stream, {"type": "session.attach", "session": session})
        start = attached["next_seq"]
        assert start == len(before)
        assert await answer(stream, session, start - 1, values) == before[-1]
        return [await answer(stream, session, seq, values) for seq in range(start, FRAMES)]


async def test_sigterm_loses_nothing_and_a_restart_continues(tmp_path: Path, values):
    expected = await undisturbed(values)
    first = ProcessServer(tmp_path)
    try:
        session, before = await interrupted(first, values)
        assert first.wait() == 0
    finally:
        first.kill()
    assert before == expected[: len(before)]

    second = ProcessServer(tmp_path)
    try:
        after = await resumed(second.live, session, values, before)
        async with httpx.AsyncClient(base_url=second.live.http) as client:
            assert (await client.get(f"/v1/sessions/{session}")).json()["next_seq"] == FRAMES
        second.terminate()
        assert second.wait() == 0
    finally:
        second.kill()
    assert before + after == expected
