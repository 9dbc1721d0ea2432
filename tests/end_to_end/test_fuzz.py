"""Ten thousand bad messages: each gets its error, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import random
import string
import struct
from collections import Counter
from collections.abc import Callable

import httpx
import numpy as np
from websockets.asyncio.client import ClientConnection, connect

from service.errors import STATUS
from tests.end_to_end import talk
from tests.end_to_end.live import Live, thread_server

STREAMED = 8_000
POSTED = 2_000
CONNECTIONS = 4
WINDOW = 64
FRAMES = 80
WRONG = [
    None,
    True,
    -1,
    1.5,
    "x",
    [],
    {},
    [[]],
    [1],
    [["x"]],
    [[None, "1"]],
    [[[1.0]]],
    "@@",
    2**63,
]
REQUIRED = {
    "session.attach": {"session"},
    "forecast.create": {"session", "horizon", "quantiles"},
    "session.reset": {"session"},
    "session.close": {"session"},
    "session.create": {"channels", "horizon", "quantiles", "encoding", "model"},
    "frames.append": {"session", "seq", "values", "timestamps"},
}


def valid(session: str) -> list[dict]:
    """Messages that would be answered, were they not bent."""
    frame = {"type": "frames.append", "session": session, "seq": 1, "values": [[1.0], [None]]}
    return [
        frame,
        {**frame, "timestamps": [1.0, 2.0]},
        {"type": "session.create", "channels": 2, "prompt": [[1.0, 2.0]], "horizon": 3},
        {"type": "session.attach", "session": session},
        {"type": "forecast.create", "session": session, "horizon": 3, "quantiles": [0.5]},
        {"type": "session.reset", "session": session},
        {"type": "session.close", "session": session},
        {"type": "keepalive"},
    ]


class Fuzz:
    """Makes messages none of which may succeed."""

    def __init__(self, seed: int, session: str) -> None:
        self.random = random.Random(seed)
        self.session = session

    def message(self) -> str | bytes:
        makers: list[Callable[[], str | bytes]] = [
            self.noise_text,
            self.noise_bytes,
            self.bent_frame,
            self.truncated,
            self.scrambled,
            self.mistyped,
            self.misplaced,
        ]
        return self.random.choice(makers)()

    def noise_text(self) -> str:
        letters = string.printable + "é漢\u2028\x00"
        return "".join(self.random.choices(letters, k=self.random.randint(0, 60))) + "]"

    def noise_bytes(self) -> bytes:
        return b"\xff" + self.random.randbytes(self.random.randint(0, 80))

    def bent_frame(self) -> bytes:
        whole = talk.binary_frame(self.random.randint(100, 2**32 - 1), 0, np.ones((3, 1)))
        cut = self.random.choice([*range(17), 17, 18, 19, len(whole)])
        return whole[:cut]

    def truncated(self) -> str:
        text = json.dumps(self.random.choice(valid(self.session)))
        return text[: self.random.randint(1, len(text) - 1)]

    def scrambled(self) -> str:
        while True:
            text = list(json.dumps(self.random.choice(valid(self.session))))
            for _ in range(self.random.randint(1, 4)):
                text[self.random.randrange(len(text))] = self.random.choice(string.printable)
            bent = "".join(text)
            try:
                json.loads(bent)
            except ValueError:
                return bent

    def mistyped(self) -> str:
        message = dict(self.random.choice(valid(self.session)[:-1]))
        field = self.random.choice(sorted(REQUIRED[message["type"]]))
        harmless = {("timestamps", type(None)), ("model", type(None))}
        harmless |= {(name, type(None)) for name in ("horizon", "quantiles")}
        wrong = [w for w in WRONG if (field, type(w)) not in harmless]
        return json.dumps({**message, field: self.random.choice(wrong)})

    def misplaced(self) -> str:
        absent = self.random.randbytes(16).hex()
        return json.dumps(
            self.random.choice(
                [
                    {
                        "type": "frames.append",
                        "session": self.session,
                        "seq": 10**9,
                        "values": [[1]],
                    },
                    {"type": "frames.append", "session": absent, "seq": 0, "values": [[1.0]]},
                    {"type": "session.close", "session": absent},
                    {"type": "session.create", "surprise": 1},
                    {"type": "session.create", "channels": 10**6},
                    {"type": "session.create", "prompt": [[1e31]]},
                    {"type": "session.attach", "session": "\0"},
                    {"type": "".join(self.random.choices(string.ascii_letters, k=5))},
                ]
            )
        )

    def request(self) -> tuple[str, str, bytes]:
        """Method, path and body."""
        paths = ["/v1/forecast", "/v1/sessions", f"/v1/sessions/{self.session}/frames"]
        paths += [f"/v1/sessions/{self.session}/{part}" for part in ("forecast", "state")]
        path = self.random.choice(paths)
        body = self.message()
        raw = (body.encode() if isinstance(body, str) else body) or b"?"
        if self.random.random() < 0.2:
            return self.random.choice(["GET", "POST", "PUT", "DELETE"]), f"/v1/{raw.hex()}", raw
        return ("PUT" if path.endswith("state") else "POST"), path, raw


async def victim(live: Live, pace: asyncio.Event | None = None) -> list[str]:
    """The forecasts of a session that streams all the while."""
    values = np.random.default_rng(5).normal(size=(FRAMES, 2)).cumsum(axis=0)
    answers: list[str] = []
    async with connect(live.stream, compression=None) as stream:
        session = (await talk.create(stream, channels=2, horizon=20))["session"]
        for seq in range(FRAMES):
            reply = await talk.ask(stream, talk.text_frame(session, seq, values[[seq]]))
            assert reply["type"] == "forecast", reply
            answers.append(json.dumps([reply["quantiles"], reply["anomaly"]]))
            if pace is not None and not pace.is_set():
                await asyncio.sleep(0.01)
    return answers


async def read_errors(stream: ClientConnection, count: int, codes: Counter[str]) -> None:
    for _ in range(count):
        reply = await talk.read(stream)
        assert reply["type"] == "error", reply
        assert set(reply["error"]) >= {"code", "message", "retryable"}
        codes[reply["error"]["code"]] += 1


async def attack_stream(live: Live, session: str, seed: int, codes: Counter[str]) -> None:
    fuzz = Fuzz(seed, session)
    share = STREAMED // CONNECTIONS
    async with connect(live.stream, compression=None) as stream:
        for start in range(0, share, WINDOW):
            count = min(WINDOW, share - start)
            for _ in range(count):
                await stream.send(fuzz.message())
            await read_errors(stream, count, codes)
        assert (await talk.ask(stream, {"type": "keepalive"}))["type"] == "ack"


async def attack_rest(live: Live, session: str, seed: int, codes: Counter[str]) -> None:
    fuzz = Fuzz(seed, session)
    async with httpx.AsyncClient(base_url=live.http, timeout=60) as client:
        for _ in range(POSTED // CONNECTIONS):
            method, path, body = fuzz.request()
            response = await client.request(method, path, content=body)
            error = response.json()["error"]
            assert response.status_code == STATUS[error["code"]]
            assert set(error) >= {"code", "message", "retryable"}
            codes[error["code"]] += 1


async def attack(live: Live, session: str, codes: Counter[str]) -> None:
    async with asyncio.TaskGroup() as tasks:
        for seed in range(CONNECTIONS):
            tasks.create_task(attack_stream(live, session, seed, codes))
            tasks.create_task(attack_rest(live, session, 100 + seed, codes))


async def test_bad_messages_get_errors_and_disturb_nobody():
    codes: Counter[str] = Counter()
    with thread_server() as live:
        calm = await victim(live)
        async with connect(live.stream, compression=None) as stream:
            session = (await talk.create(stream))["session"]
            before = await talk.ask(stream, talk.text_frame(session, 0, np.ones((20, 1))))
            over = asyncio.Event()
            async with asyncio.TaskGroup() as tasks:
                disturbed = tasks.create_task(victim(live, over))
                await attack(live, session, codes)
                over.set()
            assert disturbed.result() == calm
            after = await talk.ask(stream, talk.text_frame(session, 0, np.ones((20, 1))))
            assert after == before
    assert codes.total() == STREAMED + POSTED
    assert codes["internal"] == 0
    assert len(codes) > 10


async def test_an_oversized_message_closes_only_its_connection():
    with thread_server(max_message_bytes=1000) as live:
        async with connect(live.stream, compression=None) as stream:
            session = (await talk.create(stream))["session"]
            await talk.ask(stream, talk.text_frame(session, 0, np.ones((1, 1))))
            await stream.send(struct.pack("<BBHIQ", 1, 1, 0, 1, 1) + bytes(4000))
            await stream.wait_closed()
            assert stream.close_code == 1009
        async with connect(live.stream, compression=None) as stream:
            attach = {"type": "session.attach", "session": session}
            assert (await talk.ask(stream, attach))["next_seq"] == 1


async def test_text_that_is_not_utf8_costs_an_error_only():
    with thread_server() as live:
        async with connect(live.stream, compression=None) as stream:
            session = (await talk.create(stream))["session"]
            for message in (b"\xff\xfe", b'{"type": "keepalive", "request_id": "\xc3"}'):
                await stream.send(message, text=True)
                reply = await talk.read(stream)
                assert (reply["type"], reply["error"]["code"]) == ("error", "invalid_json")
            await stream.send([b'{"type": "keep', b"\xc3", b'"}'], text=True)
            assert (await talk.read(stream))["error"]["code"] == "invalid_json"
            await stream.send(['{"type": "keepalive", "request_id": "\u00e9', '\U0001f600"}'])
            assert (await talk.read(stream))["request_id"] == "\u00e9\U0001f600"
            reply = await talk.ask(stream, talk.text_frame(session, 0, np.ones((1, 1))))
            assert reply["type"] == "forecast"
