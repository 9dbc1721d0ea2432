"""Generation: by whom it is repeated, when it ends, what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kssm.errors import InvalidInputError
from kssm.language import LanguageModel, Sampling
from tests.language.models import BACKBONES, VOCABULARY, tiny_language_model

PROMPTS = [[5, 6, 7, 8], [9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]


@pytest.fixture(params=BACKBONES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return tiny_language_model(request.param)


def naive(model: LanguageModel, prompt: list[int], steps: int) -> list[int]:
    """The likeliest continuation, everything read again for every token."""
    text = list(prompt)
    for _ in range(steps):
        logits, _ = model(torch.tensor([text]))
        text.append(int(logits[0, -1].argmax()))
    return text[len(prompt) :]


def test_greedy_is_the_likeliest_token_each_time(model: LanguageModel) -> None:
    texts = model.generate(PROMPTS, 12, Sampling(temperature=0), stop_tokens=())
    assert texts == [naive(model, prompt, 12) for prompt in PROMPTS]


def test_a_row_does_not_depend_on_the_batch(model: LanguageModel) -> None:
    rules = Sampling(temperature=1.3, top_k=20, top_p=0.9, repetition_penalty=1.2)
    together = model.generate(PROMPTS, 20, rules, seed=11)
    for row, prompt in enumerate(PROMPTS):
        assert model.generate([prompt], 20, rules, seed=11 + row) == [together[row]]


def test_stream_gives_what_generate_gives() -> None:
    model = tiny_language_model()
    pieces = list(model.stream(PROMPTS, 9, seed=4))
    texts = model.generate(PROMPTS, 9, seed=4)
    for row, text in enumerate(texts):
        own = [piece for piece in pieces if piece.row == row]
        assert [piece.token for piece in own] == text
        assert [piece.number for piece in own] == list(range(len(text)))


def test_stream_yields_before_the_end() -> None:
    model = tiny_language_model()
    pieces = model.stream([[1]], 10_000_000, seed=0, stop_tokens=())
    assert [next(pieces).number for _ in range(3)] == [0, 1, 2]


def test_seeds_and_generators() -> None:
    model = tiny_language_model()
    by_seed = [model.generate([[1, 2]], 16, seed=s, stop_tokens=())[0] for s in (1, 2, 1)]
    assert by_seed[0] == by_seed[2] != by_seed[1]
    generators = [torch.Generator().manual_seed(s) for s in (1, 2, 1)]
    drawn = [model.generate([[1, 2]], 16, generator=g, stop_tokens=())[0] for g in generators]
    assert drawn[0] == drawn[2] != drawn[1]


def test_a_stop_token_ends_its_row_only() -> None:
    model = tiny_language_model()
    free = model.generate(PROMPTS, 15, Sampling(temperature=0), stop_tokens=())
    stop = free[0][4]
    texts = model.generate(PROMPTS, 15, Sampling(temperature=0), stop_tokens=(stop,))
    for text, whole in zip(texts, free, strict=True):
        end = whole.index(stop) + 1 if stop in whole else len(whole)
        assert text == whole[:end]


def test_eos_is_the_default_stop() -> None:
    model = tiny_language_model()
    texts = model.generate([[1 + i] for i in range(20)], 60, seed=0)
    assert any(text[-1] == 0 and len(text) < 60 for text in texts)
    assert all(0 not in text[:-1] for text in texts)


def test_a_repetition_penalty_brings_new_tokens() -> None:
    model = tiny_language_model()
    rules = [Sampling(temperature=0, repetition_penalty=p) for p in (1.0, 1e6)]
    plain, varied = (model.generate([[1, 2, 3]], 20, r, stop_tokens=())[0] for r in rules)
    assert len(set(varied)) == 20
    assert {1, 2, 3}.isdisjoint(varied)
    assert len(set(plain)) < 20


@pytest.mark.parametrize("name", ["frequency_penalty", "presence_penalty"])
def test_discouraging_brings_new_tokens_but_spares_the_prompt(name: str) -> None:
    model = tiny_language_model()
    rules = Sampling(temperature=0, **{name: 1e6})
    texts = model.generate([[1, 2, 3], [7]], 20, rules, stop_tokens=())
    assert [len(set(text)) for text in texts] == [20, 20]
    alone = model.generate([[7]], 20, rules, stop_tokens=())
    assert alone[0] == texts[1]


def test_nothing_to_do() -> None:
    assert tiny_language_model().generate([], 5) == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"prompts": [[]]}, "invalid_tokens"),
        ({"prompts": [[VOCABULARY]]}, "invalid_tokens"),
        ({"prompts": [[-1]]}, "invalid_tokens"),
        ({"prompts": [[1.5]]}, "invalid_tokens"),
        ({"max_tokens": 0}, "invalid_sampling"),
        ({"seed": -1}, "invalid_sampling"),
        ({"stop_tokens": (VOCABULARY,)}, "invalid_tokens"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], code: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        tiny_language_model().stream(**{"prompts": [[1]], **arguments})
    assert error.value.code == code
