"""A language model on a real server with the real client: text as the library makes it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect

from kssm.forecast import pretrained
from kssm.forecast.testing import tiny_forecaster
from kssm.language import LanguageModel, Sampling, load, save, save_hugging_face
from kssm_client import InvalidInputError, ProtocolError, RestClient, open_text
from kssm_client.text import TextSession
from service.app import create_app
from service.core import build_engine
from service.server import make_server
from service.settings import Settings
from tests.end_to_end.live import Live, thread_server
from tests.end_to_end.talk import create, read, text_frame
from tests.language.models import BACKBONES, VOCABULARY, tiny_language_model, word_tokenizer
from tests.runtime.support import wave

PROMPT = [7, 8, 9, 30]
RULES = Sampling(3.0, top_p=0.9)


@contextmanager
def serving(folder: Path) -> Generator[Live, None, None]:
    """What ``kssm serve --model FOLDER`` starts, in a thread."""
    settings = Settings(port=0, log_level="warning", model=str(folder), device="cpu")
    server = make_server(create_app(settings, build_engine(settings)), settings)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield Live(server.wait_until_listening(30))
    finally:
        server.should_exit = True
        thread.join()


def expected(model: LanguageModel, prompt: list[int], count: int, seed: int) -> tuple[int, ...]:
    return tuple(model.generate([prompt], count, RULES, seed=seed, stop_tokens=())[0])


async def tokens_of(text: TextSession, count: int, seed: int) -> tuple[int, ...]:
    made = text.generate(count, temperature=3.0, top_p=0.9, seed=seed, ignore_eos=True)
    return tuple([token.token async for token in made])


@pytest.mark.parametrize("name", BACKBONES)
async def test_every_architecture_writes_what_the_library_writes(name: str, tmp_path: Path) -> None:
    save(tiny_language_model(name), tmp_path)
    model = load(tmp_path)
    with serving(tmp_path) as live:

        async def talk(seed: int) -> None:
            prompt = PROMPT[: 1 + seed]
            async with open_text(live.http, prompt=prompt) as text:
                first = await tokens_of(text, 15, seed)
                assert first == expected(model, prompt, 15, seed)
                await text.append([5, 6])
                more = await tokens_of(text, 5, seed)
                assert more == expected(model, [*prompt, *first, 5, 6], 5, seed)

        await asyncio.gather(*map(talk, range(4)))


@pytest.mark.parametrize("name", BACKBONES)
async def test_every_architecture_forecasts_as_a_stream_and_at_once(
    name: str, tmp_path: Path
) -> None:
    pretrained.save(tiny_forecaster(backbone=BACKBONES[name]), tmp_path, half=False)
    values = wave(40)
    with serving(tmp_path) as live, RestClient(live.http) as rest:
        async with connect(live.stream) as stream:
            session = (await create(stream, horizon=5, quantiles=[0.5]))["session"]
            for seq, row in enumerate(values):
                await stream.send(text_frame(session, seq, row[None]))
                streamed = (await read(stream))["quantiles"]["0.5"][0]
        (at_once,) = await asyncio.to_thread(
            rest.forecast, [values[:, 0]], horizon=5, quantiles=[0.5]
        )
        assert at_once.values[0] == pytest.approx(streamed, rel=1e-4)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("model")
    save_hugging_face(tiny_language_model("mamba"), folder, max_shard_bytes=3_000)
    word_tokenizer().save(str(folder / "tokenizer.json"))
    with serving(folder) as found:
        yield found


async def test_text_of_a_model_that_transformers_saved(live: Live) -> None:
    model = tiny_language_model("mamba")
    async with open_text(live.http, prompt="w7 w8 w9 w30") as text:
        assert text.vocab_size == VOCABULARY
        made = await text.complete(8, temperature=3.0, top_p=0.9, seed=2, ignore_eos=True)
        assert made.tokens == expected(model, PROMPT, 8, 2)
        assert made.text == " ".join(f"w{token}" for token in made.tokens)
        assert made.reason == "length"


def test_a_text_over_rest(live: Live) -> None:
    model = tiny_language_model("mamba")
    with RestClient(live.http) as rest:
        session = rest.create_text("w7 w8")
        for _ in range(2):  # the second is a duplicate
            rest.append_tokens(session, 0, PROMPT[2:])
        assert rest.session(session).next_seq == 1
        first = rest.generate(session, 8, temperature=3.0, top_p=0.9, seed=2, ignore_eos=True)
        assert first.tokens == expected(model, PROMPT, 8, 2)
        assert first.text == " ".join(f"w{token}" for token in first.tokens)
        whole = [*PROMPT, *first.tokens]
        (likeliest,) = model.generate([whole], 1, Sampling(0), stop_tokens=())[0]
        stopped = rest.generate(session, 9, temperature=0, stop=[f"w{likeliest}"])
        assert (stopped.tokens, stopped.reason) == ((likeliest,), "stop")
        after = rest.generate(session, 3, temperature=3.0, top_p=0.9, seed=4, ignore_eos=True)
        assert after.tokens == expected(model, [*whole, likeliest], 3, 4)
        with pytest.raises(InvalidInputError) as error:
            rest.generate(session, temperature=-1.0)
        assert error.value.code == "invalid_sampling"


async def test_a_forecaster_is_no_language_model_and_keeps_no_session() -> None:
    with thread_server() as found:
        with pytest.raises(ProtocolError, match="not a language model"):
            async with open_text(found.http):
                pass
        with pytest.raises(InvalidInputError) as error:
            async with open_text(found.http, prompt="w1"):
                pass
        assert error.value.code == "wrong_model_kind"
        metrics = await asyncio.to_thread(httpx.get, f"{found.http}/metrics")
        assert "kssm_sessions 0.0" in metrics.text.splitlines()


async def test_leaving_early_cancels_and_the_text_goes_on(live: Live) -> None:
    async with open_text(live.http, prompt=PROMPT) as text:
        made = text.generate(4000, temperature=3.0, seed=3, ignore_eos=True)
        async with aclosing(made):
            async for token in made:
                if token.index == 3:
                    break
        assert text.last is not None
        assert text.last.reason == "cancelled"
        assert len(text.last.tokens) >= 4
        whole = [*PROMPT, *text.last.tokens]
        after = await tokens_of(text, 5, 1)
        assert after == expected(tiny_language_model("mamba"), whole, 5, 1)


async def test_a_session_is_found_again(live: Live) -> None:
    async with open_text(live.http, prompt=PROMPT) as text:
        await text.append([1])
        session = text.id
    async with open_text(live.http, session=session) as text:
        made = await tokens_of(text, 5, 9)
        assert made == expected(tiny_language_model("mamba"), [*PROMPT, 1], 5, 9)
        await text.append([2])
        await text.close()


async def test_refusals_are_errors_of_the_client(live: Live) -> None:
    async with open_text(live.http) as text:
        with pytest.raises(InvalidInputError) as error:
            await text.complete(5)
        assert error.value.code == "invalid_tokens"
        with pytest.raises(InvalidInputError):
            await text.append([VOCABULARY])
        async with open_text(live.http, session=text.id) as other:
            await other.append([3])
        await text.append([3])  # a duplicate to the server, and no second token
        assert await tokens_of(text, 4, 0) == expected(tiny_language_model("mamba"), [3], 4, 0)
