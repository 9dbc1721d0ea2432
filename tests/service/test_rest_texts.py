"""Language sessions over REST."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from kssm.language import Sampling
from kssm.language.rows import LanguageRows
from kssm.runtime import Engine
from service.settings import Settings
from tests.language.models import VOCABULARY, tiny_language_model
from tests.service.rest import ABSENT, connect, create, error, serve
from tests.service.test_texts import CONFIG, PROMPT, rows, words

OPTIONS: dict[str, Any] = {"temperature": 3.0, "top_p": 0.9, "seed": 5, "ignore_eos": True}


@asynccontextmanager
async def served(model: LanguageRows | None = None) -> AsyncGenerator[httpx.AsyncClient]:
    engine = Engine(model or rows(), CONFIG)
    async with serve(Settings(drain_timeout_s=5), engine) as app, connect(app) as client:
        yield client


def expected(prompt: list[int], count: int, **rules: float) -> list[int]:
    sampling = Sampling(3.0, top_p=0.9, **rules)
    return tiny_language_model().generate([prompt], count, sampling, seed=5, stop_tokens=())[0]


async def test_a_text_is_appended_and_continued() -> None:
    async with served() as client:
        session = await create(client, prompt=PROMPT[:2])
        path = f"/v1/sessions/{session}"
        ack = {"type": "ack", "of": "tokens.append", "session": session, "seq": 0}
        for _ in range(2):  # the second is a duplicate
            reply = await client.post(f"{path}/tokens", json={"seq": 0, "tokens": PROMPT[2:]})
            assert (reply.status_code, reply.json()) == (200, ack)
        reply = await client.post(f"{path}/generate", json={"max_tokens": 9, **OPTIONS})
        first = expected(PROMPT, 9)
        assert reply.json() == {"session": session, "tokens": first, "reason": "length"}
        reply = await client.post(f"{path}/generate", json={"max_tokens": 4, **OPTIONS})
        assert reply.json()["tokens"] == expected([*PROMPT, *first], 4)


@pytest.mark.parametrize(
    "penalty", [{"frequency_penalty": 2.0}, {"presence_penalty": 2.0}], ids=str
)
async def test_penalties_are_the_librarys(penalty: dict[str, float]) -> None:
    async with served() as client:
        session = await create(client, prompt=PROMPT)
        body = {"max_tokens": 15, **OPTIONS, **penalty}
        reply = await client.post(f"/v1/sessions/{session}/generate", json=body)
        assert reply.json()["tokens"] == expected(PROMPT, 15, **penalty)
        assert reply.json()["tokens"] != expected(PROMPT, 15)


async def test_text_where_there_is_a_tokenizer() -> None:
    async with served(rows(tokenizer=words())) as client:
        session = await create(client, prompt="w3 w9")
        path = f"/v1/sessions/{session}"
        reply = await client.post(f"{path}/tokens", json={"seq": 0, "text": "w27"})
        assert reply.status_code == 200
        reply = (await client.post(f"{path}/generate", json={"max_tokens": 3, **OPTIONS})).json()
        assert reply["text"] == " ".join(f"w{token}" for token in reply["tokens"])


async def test_who_hangs_up_ends_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    async def gone_at_once(_request: object) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr("service.routes.texts._gone", gone_at_once)
    async with served() as client:
        session = await create(client, prompt=PROMPT)
        body = {"max_tokens": 4000, **OPTIONS}
        reply = await client.post(f"/v1/sessions/{session}/generate", json=body)
        assert reply.json()["reason"] == "cancelled"
        assert len(reply.json()["tokens"]) < 4000


@pytest.mark.parametrize(
    ("action", "body", "answer"),
    [
        ("tokens", {"seq": 0, "tokens": [VOCABULARY]}, (400, "invalid_tokens")),
        ("tokens", {"seq": 0}, (400, "invalid_tokens")),
        ("tokens", {"tokens": [1]}, (422, "invalid_request")),
        ("tokens", {"seq": 2, "tokens": [1]}, (409, "seq_gap")),
        ("generate", {"max_tokens": 0}, (400, "invalid_sampling")),
        ("generate", {"repetition_penalty": 0}, (400, "invalid_sampling")),
        ("generate", {"stop": ["x"]}, (400, "no_tokenizer")),
        ("generate", {"unknown": 1}, (422, "invalid_request")),
    ],
)
async def test_what_is_wrong_is_told(
    action: str, body: dict[str, Any], answer: tuple[int, str]
) -> None:
    async with served() as client:
        session = await create(client, prompt=PROMPT)
        reply = await client.post(f"/v1/sessions/{session}/{action}", json=body)
        assert error(reply) == answer
        absent = await client.post(f"/v1/sessions/{ABSENT}/generate", json={})
        assert error(absent) == (404, "session_not_found")


async def test_a_forecaster_takes_no_tokens(client: httpx.AsyncClient) -> None:
    session = await create(client)
    for action, body in (("tokens", {"seq": 0, "tokens": [1]}), ("generate", {})):
        reply = await client.post(f"/v1/sessions/{session}/{action}", json=body)
        assert error(reply) == (400, "wrong_model_kind")
