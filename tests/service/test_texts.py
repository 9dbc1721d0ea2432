"""Language sessions through the service: every architecture, text and ids, streams and ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kssm.language import LanguageModel, Sampling
from kssm.language.rows import LanguageRows
from kssm.language.tokenizer import Tokenizer
from kssm.runtime import Engine, EngineConfig
from service.core import Service
from service.settings import Settings
from tests.language.models import BACKBONES, VOCABULARY, tiny_language_model, word_tokenizer
from tests.service.peer import Peer
from tests.service.rest import connect, serve

CONFIG = EngineConfig(max_rows=8, initial_rows=2, prefill_tokens=64, chunk_tokens=16)
PROMPT = [3, 9, 27, 1, 2]
RULES: dict[str, Any] = {"temperature": 3.0, "top_p": 0.9, "seed": 5, "ignore_eos": True}
Json = dict[str, Any]


def words() -> Tokenizer:
    return Tokenizer(word_tokenizer())


def rows(name: str = "kssm", tokenizer: Tokenizer | None = None) -> LanguageRows:
    return LanguageRows(tiny_language_model(name), tokenizer)


@asynccontextmanager
async def served(
    model: LanguageRows, settings: Settings | None = None
) -> AsyncGenerator[tuple[Peer, Service]]:
    service = Service(settings or Settings(drain_timeout_s=5), Engine(model, CONFIG))
    await service.start()
    peer = Peer(service)
    try:
        yield peer, service
    finally:
        await peer.leave()
        await service.stop()


async def opened(peer: Peer, prompt: object = PROMPT) -> str:
    return (await peer.create(prompt=prompt))["session"]


async def generation(peer: Peer, session: str, **fields: Any) -> tuple[list[Json], Json]:
    """The token messages and the final one."""
    peer.post({"type": "generate.create", "session": session, **fields})
    return await finish(peer)


async def finish(peer: Peer) -> tuple[list[Json], Json]:
    told: list[Json] = []
    while (message := await peer.read())["type"] == "token":
        told.append(message)
    return told, message


def expected(model: LanguageModel, prompt: list[int], count: int) -> list[int]:
    rules = Sampling(3.0, top_p=0.9)
    return model.generate([prompt], count, rules, seed=5, stop_tokens=())[0]


@pytest.mark.parametrize("name", BACKBONES)
async def test_a_streamed_text_is_the_librarys(name: str) -> None:
    model = rows(name)
    async with served(model) as (peer, _):
        created = await peer.create(prompt=PROMPT[:2])
        assert (created["kind"], created["vocab_size"]) == ("language", VOCABULARY)
        session = created["session"]
        appended = {"type": "tokens.append", "session": session, "seq": 0, "tokens": PROMPT[2:]}
        ack = {"type": "ack", "of": "tokens.append", "session": session, "seq": 0}
        assert await peer.ask(appended) == ack
        assert await peer.ask(appended) == ack
        told, end = await generation(peer, session, max_tokens=12, **RULES, request_id="r")
        text = expected(model.model, PROMPT, 12)
        assert end == {
            "type": "generation",
            "session": session,
            "tokens": text,
            "reason": "length",
            "request_id": "r",
        }
        assert [message["token"] for message in told] == text
        assert [message["index"] for message in told] == list(range(12))
        assert {message["request_id"] for message in told} == {"r"}


async def test_many_sessions_of_one_connection_take_turns() -> None:
    model = rows()
    async with served(model) as (peer, _):
        sessions = [await opened(peer, PROMPT[: 1 + i]) for i in range(4)]
        for session in sessions:
            peer.post({"type": "generate.create", "session": session, "max_tokens": 25, **RULES})
        messages = [await peer.read() for _ in range(4 * 26)]
        finals = [message for message in messages if message["type"] == "generation"]
        assert [final["session"] for final in finals] == sessions
        for i, final in enumerate(finals):
            assert final["tokens"] == expected(model.model, PROMPT[: 1 + i], 25)
            own = [m for m in messages if m["session"] == final["session"]]
            assert [m["token"] for m in own[:-1]] == final["tokens"]
            assert own[-1] is final
        first = [m["session"] for m in messages[:20] if m["type"] == "token"]
        assert len(set(first)) == 4


async def test_text_in_and_out() -> None:
    async with served(rows(tokenizer=words())) as (peer, _):
        session = await opened(peer, "w3 w9")
        message = {"type": "tokens.append", "session": session, "seq": 0, "text": "w27 w1 w2"}
        assert (await peer.ask(message))["type"] == "ack"
        told, end = await generation(peer, session, max_tokens=6, **RULES)
        text = expected(tiny_language_model(), PROMPT, 6)
        assert end["tokens"] == text
        assert end["text"] == " ".join(f"w{token}" for token in text)
        assert "".join(message["text"] for message in told) == end["text"]


async def test_stops() -> None:
    text = expected(tiny_language_model(), PROMPT, 20)
    assert len(set(text)) > 6
    async with served(rows(tokenizer=words())) as (peer, _):
        for stop in (text[7], f"w{text[6]} w{text[7]}"):
            session = await opened(peer)
            _, end = await generation(peer, session, max_tokens=20, stop=[stop], **RULES)
            assert end["reason"] == "stop"
            assert end["tokens"] == text[: len(end["tokens"])]
            assert end["tokens"][-1] == text[7]
        session = await opened(peer)
        natural = await generation(peer, session, max_tokens=400, seed=1, temperature=9.0)
        assert (natural[1]["reason"], natural[1]["tokens"][-1]) == ("stop", 0)


async def test_cancelling() -> None:
    async with served(rows()) as (peer, _):
        session = await opened(peer)
        peer.post({"type": "generate.create", "session": session, "max_tokens": 4000, **RULES})
        peer.post({"type": "generate.create", "session": session, "max_tokens": 4000, **RULES})
        assert (await peer.read())["type"] == "token"
        peer.post({"type": "generate.cancel", "session": session, "request_id": "c"})
        told, end = await finish(peer)
        assert end["reason"] == "cancelled"
        assert len(end["tokens"]) == len(told) + 1 < 4000
        assert await finish(peer) == ([], {**end, "tokens": []})
        assert await peer.read() == {
            "type": "ack",
            "of": "generate.cancel",
            "session": session,
            "request_id": "c",
        }
        _, after = await generation(peer, session, max_tokens=3, **RULES)
        again = await opened(peer, [*PROMPT, *end["tokens"]])
        assert (await generation(peer, again, max_tokens=3, **RULES))[1]["tokens"] == after[
            "tokens"
        ]


async def test_a_lost_connection_ends_its_generations() -> None:
    async with served(rows()) as (peer, service):
        other = Peer(service)
        session = await opened(other)
        other.post({"type": "generate.create", "session": session, "max_tokens": 4000, **RULES})
        first = await other.read()
        await other.leave()
        attached = await peer.ask({"type": "session.attach", "session": session})
        assert attached["type"] == "session.created"
        assert service.engine.stats().tokens_stepped < 3000
        assert first["index"] == 0


async def test_states_move_over_rest_as_those_of_signals() -> None:
    settings = Settings(drain_timeout_s=5)
    async with served(rows(), settings) as (peer, service):
        session = await opened(peer)
        await generation(peer, session, max_tokens=4, **RULES)
        manager = service.manager
        twin = (await manager.fork("default", session)).id
        blob = await manager.export_state("default", session)
        fresh = (await peer.create())["session"]
        await manager.import_state("default", fresh, blob)
        texts = [
            (await generation(peer, s, max_tokens=5, **RULES))[1]["tokens"]
            for s in (session, twin, fresh)
        ]
        assert texts[0] == texts[1] == texts[2]
        await peer.ask({"type": "session.reset", "session": session})
        refused = await peer.ask({"type": "generate.create", "session": session})
        assert refused["error"]["code"] == "invalid_tokens"


async def test_sessions_survive_a_restart(tmp_path: Any) -> None:
    settings = Settings(drain_timeout_s=5, store=tmp_path / "store")
    async with served(rows(), settings) as (peer, _):
        session = await opened(peer)
        first = (await generation(peer, session, max_tokens=4, **RULES))[1]["tokens"]
    async with served(rows(), settings) as (peer, _):
        whole = await opened(peer, [*PROMPT, *first])
        texts = [
            (await generation(peer, s, max_tokens=5, **RULES))[1]["tokens"]
            for s in (session, whole)
        ]
        assert texts[0] == texts[1]


async def test_stopping_ends_generations_and_says_so() -> None:
    async with served(rows()) as (peer, service):
        service.connections.add(peer.connection)
        session = await opened(peer)
        peer.post({"type": "generate.create", "session": session, "max_tokens": 4000, **RULES})
        assert (await peer.read())["type"] == "token"
        draining = asyncio.create_task(service.drain())
        kinds: list[str] = []
        while (message := await peer.read())["type"] != "generation":
            kinds.append(message["type"])
        await draining
        assert "goaway" in kinds
        assert set(kinds) <= {"token", "goaway"}
        assert message["reason"] == "cancelled"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"type": "tokens.append", "seq": 0, "tokens": [VOCABULARY]}, "invalid_tokens"),
        ({"type": "tokens.append", "seq": 0, "tokens": []}, "invalid_tokens"),
        ({"type": "tokens.append", "seq": 0}, "invalid_tokens"),
        ({"type": "tokens.append", "seq": 0, "tokens": [1], "text": "a"}, "invalid_tokens"),
        ({"type": "tokens.append", "seq": 0, "tokens": [1.5]}, "invalid_message"),
        ({"type": "tokens.append", "seq": 3, "tokens": [1]}, "seq_gap"),
        ({"type": "tokens.append", "seq": 0, "text": "a"}, "no_tokenizer"),
        ({"type": "generate.create", "max_tokens": 0}, "invalid_sampling"),
        ({"type": "generate.create", "max_tokens": 4097}, "invalid_sampling"),
        ({"type": "generate.create", "temperature": -1}, "invalid_sampling"),
        ({"type": "generate.create", "top_p": 0}, "invalid_sampling"),
        ({"type": "generate.create", "top_k": -1}, "invalid_sampling"),
        ({"type": "generate.create", "seed": -1}, "invalid_sampling"),
        ({"type": "generate.create", "stop": [VOCABULARY]}, "invalid_tokens"),
        ({"type": "generate.create", "stop": ["x"]}, "no_tokenizer"),
        ({"type": "generate.create", "stop": [""]}, "invalid_sampling"),
        ({"type": "generate.create", "stop": [1.5]}, "invalid_message"),
        ({"type": "frames.append", "seq": 0, "values": [[1.0]]}, "wrong_model_kind"),
        ({"type": "forecast.create"}, "wrong_model_kind"),
    ],
)
async def test_what_is_wrong_is_told(message: Json, code: str) -> None:
    async with served(rows()) as (peer, _):
        session = await opened(peer)
        refused = await peer.ask({**message, "session": session})
        assert refused["type"] == "error"
        assert refused["error"]["code"] == code
        _, end = await generation(peer, session, max_tokens=4, **RULES)
        assert end["tokens"] == expected(tiny_language_model(), PROMPT, 4)


async def test_creation_is_checked() -> None:
    async with served(rows()) as (peer, _):
        for fields, code in (
            ({"channels": 2}, "invalid_request"),
            ({"timestamps": [1]}, "invalid_timestamps"),
            ({"sample_interval": 1}, "invalid_timestamps"),
            ({"prompt": [[1.0]]}, "invalid_tokens"),
            ({"prompt": 3}, "invalid_tokens"),
            ({"prompt": "w1"}, "no_tokenizer"),
        ):
            answer = await peer.ask({"type": "session.create", **fields})
            assert answer["error"]["code"] == code
        absent = await peer.ask({"type": "generate.create", "session": "0" * 32})
        assert absent["error"]["code"] == "session_not_found"


async def test_a_forecaster_takes_no_tokens(peer: Peer) -> None:
    session = (await peer.create())["session"]
    for message in (
        {"type": "tokens.append", "seq": 0, "tokens": [1]},
        {"type": "generate.create"},
    ):
        refused = await peer.ask({**message, "session": session})
        assert refused["error"]["code"] == "wrong_model_kind"


async def test_the_models_page_tells_the_kind() -> None:
    settings = Settings(drain_timeout_s=5)
    async with serve(settings, Engine(rows(), CONFIG)) as app, connect(app) as client:
        (model,) = (await client.get("/v1/models")).json()["models"]
        assert (model["kind"], model["vocab_size"], model["max_tokens"]) == (
            "language",
            VOCABULARY,
            4096,
        )
        answer = await client.post("/v1/forecast", json={"series": [{"values": [1, 2]}]})
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "wrong_model_kind"
