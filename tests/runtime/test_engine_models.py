"""Every architecture in the engine: as a forecaster and as a language model."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from kssm.forecast.testing import tiny_forecaster
from kssm.language import LanguageModel, Sampling
from kssm.language.rows import LanguageRows
from kssm.runtime import Engine, EngineConfig, GenerationResult, Listener
from tests.language.models import BACKBONES, tiny_language_model
from tests.runtime.support import HORIZON, LEVELS, assert_same, code_of, feed, state_of, wave

CONFIG = EngineConfig(
    max_rows=64, initial_rows=2, prefill_tokens=64, chunk_tokens=16, prefill_min=8, max_pending=500
)
PROMPT = [3, 9, 27, 1, 2, 30, 31, 32, 33, 5, 6]
RULES = Sampling(temperature=3.0, top_p=0.9)


def ids(tokens: list[int]) -> np.ndarray:
    return np.array(tokens, dtype=np.float64)[:, None]


@pytest.fixture(params=BACKBONES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(name: str) -> LanguageModel:
    return tiny_language_model(name)


@pytest.fixture
def engine(model: LanguageModel) -> Iterator[Engine]:
    with Engine(LanguageRows(model), CONFIG) as engine:
        yield engine


def opened(engine: Engine, prompt: list[int]) -> int:
    key = engine.open(1).result()
    engine.append(key, ids(prompt), want_forecast=False).result()
    return key


def test_forecasts_of_every_backbone(name: str) -> None:
    forecaster = tiny_forecaster(backbone=BACKBONES[name])
    values = wave(60, 2)
    with Engine(forecaster, CONFIG) as engine:
        whole, cut = engine.open(2).result(), engine.open(2).result()
        at_once = engine.append(whole, values, horizon=HORIZON, levels=LEVELS).result()
        in_pieces = feed(engine, cut, values, [20, 25, 26, 40])
        scale = np.abs(at_once.quantiles).max()
        np.testing.assert_allclose(
            in_pieces.quantiles / scale, at_once.quantiles / scale, atol=1e-4
        )
        stateless = engine.predict([values[:, 0]], HORIZON, LEVELS).result().quantiles[0].T
        np.testing.assert_allclose(stateless / scale, at_once.quantiles[0] / scale, atol=1e-4)
        twin = engine.fork(whole).result()
        futures = [engine.append(key, values[:5]) for key in (whole, twin)]
        left, right = (future.result() for future in futures)
        np.testing.assert_array_equal(left.quantiles, right.quantiles)


def test_generation_is_the_librarys(engine: Engine, model: LanguageModel) -> None:
    expected = model.generate([PROMPT], 30, RULES, seed=5, stop_tokens=())[0]
    heard: list[tuple[int, int]] = []
    listener = Listener(emit=lambda number, token: heard.append((number, token)))
    key = opened(engine, PROMPT)
    result = engine.generate(key, 30, RULES, seed=5, listener=listener).result()
    assert result == GenerationResult(tuple(expected), "length")
    assert heard == list(enumerate(expected))


def test_sessions_generate_side_by_side(engine: Engine, model: LanguageModel) -> None:
    prompts = [PROMPT[: 1 + i] for i in range(9)]
    keys = [opened(engine, prompt) for prompt in prompts]
    before = engine.stats().ticks
    futures = [
        engine.generate(key, 20, RULES, seed=i, listener=Listener()) for i, key in enumerate(keys)
    ]
    texts = [list(future.result().tokens) for future in futures]
    assert engine.stats().ticks - before < 9 * 20
    for i, prompt in enumerate(prompts):
        assert texts[i] == model.generate([prompt], 20, RULES, seed=i, stop_tokens=())[0]


def test_a_text_goes_on_where_it_ended(engine: Engine) -> None:
    """The state holds prompt and generated tokens: the next draw is that of all appended."""
    key, other = opened(engine, PROMPT), engine.open(1).result()
    first = engine.generate(key, 6, RULES, seed=1).result().tokens
    engine.append(other, ids([*PROMPT, *first]), want_forecast=False).result()
    greedy = Sampling(temperature=0)
    texts = [engine.generate(k, 8, greedy, seed=0).result().tokens for k in (key, other)]
    assert texts[0] == texts[1]


def test_forks_exports_and_imports_continue_alike(engine: Engine) -> None:
    key = opened(engine, PROMPT)
    engine.generate(key, 4, RULES, seed=1).result()
    twin, copy = engine.fork(key).result(), engine.open(1).result()
    engine.load(copy, state_of(engine, key)).result()
    texts = [engine.generate(k, 10, RULES, seed=2).result() for k in (key, twin, copy)]
    assert texts[0] == texts[1] == texts[2]
    assert_same(state_of(engine, key), state_of(engine, copy))
    assert int(state_of(engine, key)["position"][0, 0]) == len(PROMPT) + 14


@pytest.mark.parametrize("penalty", ["frequency_penalty", "presence_penalty"])
def test_penalties_count_a_generations_own_tokens(
    engine: Engine, model: LanguageModel, penalty: str
) -> None:
    rules = Sampling(2.0, top_p=0.9, **{penalty: 1.5})
    futures = [engine.generate(opened(engine, PROMPT), 15, r, seed=6) for r in (rules, RULES)]
    texts = [list(future.result().tokens) for future in futures]
    for text, asked in zip(texts, (rules, RULES), strict=True):
        assert text == model.generate([PROMPT], 15, asked, seed=6, stop_tokens=())[0]
    varied = Sampling(temperature=0, repetition_penalty=1e6)
    text = engine.generate(opened(engine, PROMPT), 15, varied, seed=1).result().tokens
    assert len(set(text)) == 15


def test_a_stop_ends_the_text(engine: Engine) -> None:
    free = engine.generate(opened(engine, PROMPT), 12, RULES, seed=3).result().tokens
    last = free[5]
    listener = Listener(stop=lambda token: token == last)
    key = opened(engine, PROMPT)
    result = engine.generate(key, 12, RULES, seed=3, listener=listener).result()
    assert result == GenerationResult(free[: free.index(last) + 1], "stop")


@pytest.fixture
def kssm() -> Iterator[Engine]:
    with Engine(LanguageRows(tiny_language_model()), CONFIG) as engine:
        yield engine


def test_cancelling_keeps_what_was_told(kssm: Engine) -> None:
    reached, told = threading.Event(), list[int]()
    flag = threading.Event()

    def emit(number: int, token: int) -> None:
        told.append(token)
        if number == 4:
            flag.set()
            reached.set()

    key = opened(kssm, PROMPT)
    future = kssm.generate(key, 400, RULES, seed=1, listener=Listener(emit, cancelled=flag))
    later = kssm.generate(key, 3, RULES, seed=9)
    result = future.result(timeout=20)
    assert result == GenerationResult(tuple(told), "cancelled")
    assert len(told) == 5
    again = opened(kssm, [*PROMPT, *told])
    assert kssm.generate(again, 3, RULES, seed=9).result() == later.result()


def test_a_listener_that_fails_costs_its_own_generation_only(kssm: Engine) -> None:
    def emit(number: int, token: int) -> None:
        if number == 3:
            raise ZeroDivisionError

    deaf, sound = opened(kssm, PROMPT), opened(kssm, PROMPT)
    before = state_of(kssm, deaf)
    listeners = (Listener(emit), Listener())
    futures = [
        kssm.generate(key, 8, RULES, seed=4, listener=listener)
        for key, listener in zip((deaf, sound), listeners, strict=True)
    ]
    assert code_of(futures[0]) == "internal"
    assert len(futures[1].result().tokens) == 8
    assert_same(state_of(kssm, deaf), before)


def test_cancelled_before_it_began(kssm: Engine) -> None:
    flag = threading.Event()
    flag.set()
    key = opened(kssm, PROMPT)
    before = state_of(kssm, key)
    result = kssm.generate(key, 5, RULES, seed=1, listener=Listener(cancelled=flag)).result()
    assert result == GenerationResult((), "cancelled")
    assert_same(state_of(kssm, key), before)


def test_what_cannot_be_done(kssm: Engine) -> None:
    key = kssm.open(1).result()
    assert code_of(kssm.generate(key, 5, RULES, seed=1)) == "invalid_tokens"
    assert code_of(kssm.append(key, ids([1]))) == "wrong_model_kind"
    assert code_of(kssm.forecast(key, 3, LEVELS)) == "wrong_model_kind"
    assert code_of(kssm.predict([np.ones(3)], 3, LEVELS)) == "wrong_model_kind"
    for tokens in ([40], [-1], [0.5], [np.nan], [np.inf]):
        wrong = kssm.append(key, np.array([tokens], dtype=float), want_forecast=False)
        assert code_of(wrong) == "invalid_tokens"
    assert code_of(kssm.generate(key, 0, RULES, seed=1)) == "invalid_sampling"
    assert code_of(kssm.generate(key, 5, RULES, seed=-1)) == "invalid_sampling"
    pair = kssm.open(2).result()
    assert code_of(kssm.generate(pair, 5, RULES, seed=1)) == "wrong_model_kind"


def test_forecasters_generate_nothing() -> None:
    with Engine(tiny_forecaster(), CONFIG) as engine:
        key = engine.open(1).result()
        assert code_of(engine.generate(key, 5, RULES, seed=1)) == "wrong_model_kind"


def test_a_sick_model_costs_its_own_session_only() -> None:
    """One row's state is spoilt; its generation fails and is undone, its neighbour's does not."""
    model = tiny_language_model()
    with Engine(LanguageRows(model), CONFIG) as engine:
        sick, sound = opened(engine, PROMPT), opened(engine, PROMPT)
        state = state_of(engine, sick)
        huge = {name: np.full_like(array, 3e38) for name, array in state.items()}
        huge["position"], huge["hidden"] = state["position"], state["hidden"]
        engine.load(sick, huge).result()
        futures = [engine.generate(key, 8, RULES, seed=4) for key in (sick, sound)]
        expected = model.generate([PROMPT], 8, RULES, seed=4, stop_tokens=())[0]
        assert list(futures[1].result().tokens) == expected
        assert code_of(futures[0]) == "numerical_fault"
        assert_same(state_of(engine, sick), huge)
