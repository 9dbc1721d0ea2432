"""However a series is cut, sent and mixed with others, the forecast is that of the whole."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import numpy as np
import pytest
from websockets.asyncio.client import ClientConnection, connect

from tests.end_to_end import talk
from tests.end_to_end.live import Live, thread_server

CASES = 500
ALONE = 40
CONNECTIONS = 8
LEVELS = (0.1, 0.5, 0.9)
HORIZONS = (1, 8, 24)
WAYS = ("text", "base64", "binary", "rest")
TOLERANCE = 1e-4
RESOLUTION = 1e-6  # of the largest value: where a forecast crosses zero, float32 ends


@dataclass(frozen=True)
class Case:
    values: np.ndarray  # [samples, channels], NaN = missing, exact in float32
    cuts: tuple[int, ...]  # ends of the prompt and of all messages but the last
    prompt: bool
    horizon: int
    way: str
    encoding: str

    @property
    def channels(self) -> int:
        return self.values.shape[1]

    @property
    def pieces(self) -> list[np.ndarray]:
        return np.split(self.values, self.cuts)


def signal(rng: np.random.Generator, samples: int, channels: int) -> np.ndarray:
    time = np.arange(samples)[:, None]
    waves = np.sin(time * rng.uniform(0.05, 2, channels) + rng.uniform(0, 6, channels))
    walk = rng.normal(size=(samples, channels)).cumsum(axis=0) * rng.uniform(0, 1)
    noise = rng.normal(size=(samples, channels)) * 0.2
    values = (waves + walk + noise + rng.normal(0, 3)) * 10.0 ** rng.uniform(-3, 4)
    values[rng.random(values.shape) < rng.choice([0.0, 0.15])] = np.nan
    return values.astype(np.float32).astype(np.float64)


def make_case(rng: np.random.Generator) -> Case:
    samples = int(rng.integers(6, 48))
    cuts = np.sort(rng.choice(np.arange(1, samples), int(rng.integers(1, 5)), replace=False))
    return Case(
        values=signal(rng, samples, int(rng.integers(1, 4))),
        cuts=tuple(cuts.tolist()),
        prompt=bool(rng.random() < 0.7),
        horizon=int(rng.choice(HORIZONS)),
        way=str(rng.choice(WAYS)),
        encoding=str(rng.choice(["json", "binary"])),
    )


def settings(case: Case) -> dict[str, object]:
    prompt = {"prompt": talk.rows(case.pieces[0])} if case.prompt else {}
    return {"channels": case.channels, "horizon": case.horizon, **prompt}


def frames(case: Case) -> list[np.ndarray]:
    return case.pieces[1:] if case.prompt else case.pieces


async def over_stream(stream: ClientConnection, case: Case) -> np.ndarray:
    created = await talk.create(stream, **settings(case), encoding=case.encoding)
    reply: str | bytes = b""
    for seq, values in enumerate(frames(case)):
        if case.way == "binary":
            message = talk.binary_frame(created["handle"], seq, values)
        elif case.way == "base64":
            message = talk.base64_frame(created["session"], seq, values)
        else:
            message = talk.text_frame(created["session"], seq, values)
        await stream.send(message)
        reply = await stream.recv()
    await talk.ask(stream, {"type": "session.close", "session": created["session"]})
    return talk.quantiles_of(reply, case.channels, len(LEVELS))


async def over_rest(client: httpx.AsyncClient, case: Case) -> np.ndarray:
    created = (await client.post("/v1/sessions", json=settings(case))).json()
    path = f"/v1/sessions/{created['session_id']}"
    reply = ""
    for seq, values in enumerate(frames(case)):
        body = {"seq": seq, "values": talk.rows(values)}
        reply = (await client.post(f"{path}/frames", json=body)).text
    await client.delete(path)
    return talk.quantiles_of(reply, case.channels, len(LEVELS))


async def batch(client: httpx.AsyncClient, cases: list[Case]) -> list[np.ndarray]:
    """[channels, levels, horizon] of each case's whole series, all in one request a horizon."""
    found: dict[int, np.ndarray] = {}
    for horizon in HORIZONS:
        chosen = [(n, case) for n, case in enumerate(cases) if case.horizon == horizon]
        series = [
            {"id": n, "values": [row[0] for row in talk.rows(case.values[:, [c]])]}
            for n, case in chosen
            for c in range(case.channels)
        ]
        request = {"series": series, "horizon": horizon, "quantiles": LEVELS}
        response = await client.post("/v1/forecast", json=request)
        assert response.status_code == 200, response.text
        for n, case in chosen:
            parts = [f for f in response.json()["forecasts"] if f["id"] == n]
            assert len(parts) == case.channels
            found[n] = np.array([list(part["quantiles"].values()) for part in parts])
    return [found[n] for n in range(len(cases))]


async def together(live: Live, client: httpx.AsyncClient, cases: list[Case]) -> list[np.ndarray]:
    """Every case's last forecast, many sessions under way at once."""
    results: dict[int, np.ndarray] = {}
    streamed = [(n, case) for n, case in enumerate(cases) if case.way != "rest"]
    posted = [(n, case) for n, case in enumerate(cases) if case.way == "rest"]

    async def stream_share(share: list[tuple[int, Case]]) -> None:
        async with connect(live.stream, compression=None) as stream:
            for n, case in share:
                results[n] = await over_stream(stream, case)

    async def post_share(share: list[tuple[int, Case]]) -> None:
        for n, case in share:
            results[n] = await over_rest(client, case)

    shares = [stream_share(streamed[k::CONNECTIONS]) for k in range(CONNECTIONS)]
    shares += [post_share(posted[k::4]) for k in range(4)]
    await asyncio.gather(*shares)
    return [results[n] for n in range(len(cases))]


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with thread_server() as server:
        yield server


def assert_equal(streamed: np.ndarray, whole: np.ndarray, case: Case) -> None:
    assert streamed.shape == whole.shape == (case.channels, len(LEVELS), case.horizon)
    floor = RESOLUTION * np.abs(whole).max()
    np.testing.assert_allclose(streamed, whole, rtol=TOLERANCE, atol=floor, err_msg=str(case))


async def test_streaming_is_batch(live):
    rng = np.random.default_rng(20260101)
    cases = [make_case(rng) for _ in range(CASES)]
    async with httpx.AsyncClient(base_url=live.http, timeout=60) as client:
        whole = await batch(client, cases)
        alone = [await together(live, client, [case]) for case in cases[:ALONE]]
        mixed = await together(live, client, cases[ALONE:])
    for case, expected, got in zip(cases, whole, [*(a[0] for a in alone), *mixed], strict=True):
        assert_equal(got, expected, case)


async def test_an_exported_state_continues_bit_for_bit(live):
    rng = np.random.default_rng(7)
    values = signal(rng, 80, 2)
    stamps = np.cumsum(rng.uniform(0.5, 6, 80)).tolist()
    url = "/v1/sessions"
    async with (
        httpx.AsyncClient(base_url=live.http, timeout=60) as client,
        connect(live.stream, compression=None) as stream,
    ):
        one = (await talk.create(stream, channels=2, sample_interval=2.0))["session"]
        for seq, part in enumerate(np.split(np.arange(40), [5, 30])):
            times = [stamps[n] for n in part]
            await talk.ask(stream, talk.text_frame(one, seq, values[part], timestamps=times))
        state = (await client.get(f"{url}/{one}/state")).content
        fork = (await client.post(f"{url}/{one}/fork")).json()["session_id"]
        body = {"channels": 2, "prompt": talk.rows(values[:3])}
        other = (await client.post(url, json=body)).json()["session_id"]
        put = await client.put(f"{url}/{other}/state", content=state)
        assert put.json()["next_seq"] == 0
        for seq, part in enumerate(np.split(np.arange(40, 80), [1, 2, 20])):
            answers = []
            for session, start in ((one, 3), (fork, 0), (other, 0)):
                times = [stamps[n] for n in part]
                frame = talk.text_frame(session, start + seq, values[part], timestamps=times)
                answer = await talk.ask(stream, frame)
                assert answer["type"] == "forecast", answer
                answers.append(json.dumps([answer["quantiles"], answer["anomaly"]]))
            assert answers[0] == answers[1] == answers[2]
