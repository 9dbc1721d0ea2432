"""The rules of choice on distributions that can be written down."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kssm.errors import InvalidInputError
from kssm.language.sampling import Sampling, choose, discourage, penalise, seen_in, uniforms

PROBABILITIES = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15], dtype=torch.float64)
DRAWS = 20_000


def frequencies(rule: Sampling) -> torch.Tensor:
    logits = PROBABILITIES.log().expand(DRAWS, -1)
    draws = torch.from_numpy(uniforms([7] * DRAWS, range(DRAWS)))
    tokens = choose(logits, [rule] * DRAWS, draws)
    return torch.bincount(tokens, minlength=5).double() / DRAWS


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Sampling(), [0.1, 0.4, 0.05, 0.3, 0.15]),
        (Sampling(temperature=0), [0, 1, 0, 0, 0]),
        (Sampling(top_k=2), [0, 4 / 7, 0, 3 / 7, 0]),
        (Sampling(top_k=1), [0, 1, 0, 0, 0]),
        (Sampling(top_p=0.6), [0, 4 / 7, 0, 3 / 7, 0]),
        (Sampling(top_p=0.75), [0, 0.4 / 0.85, 0, 0.3 / 0.85, 0.15 / 0.85]),
        (Sampling(top_p=1e-9), [0, 1, 0, 0, 0]),
        (Sampling(top_k=3, top_p=0.8), [0, 4 / 7, 0, 3 / 7, 0]),
        (
            Sampling(temperature=0.5),
            [0.01 / 0.285, 0.16 / 0.285, 0.0025 / 0.285, 0.09 / 0.285, 0.0225 / 0.285],
        ),
    ],
)
def test_tokens_come_as_often_as_they_should(rule: Sampling, expected: list[float]) -> None:
    found = frequencies(rule)
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), atol=0.012)
    assert all(found[i] == 0 for i, p in enumerate(expected) if p == 0)


def test_rows_of_one_batch_follow_their_own_rules() -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    rules = [
        Sampling(),
        Sampling(temperature=0),
        Sampling(top_k=3),
        Sampling(top_p=0.5),
        Sampling(temperature=2.0),
        Sampling(top_k=5, top_p=0.7, temperature=0.7),
    ]
    draws = torch.from_numpy(uniforms(range(6), [3] * 6))
    together = choose(logits, rules, draws)
    for row, rule in enumerate(rules):
        alone = choose(logits[row : row + 1], [rule], draws[row : row + 1])
        assert together[row] == alone[0]


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-53])
def test_the_ends_of_the_interval_pick_possible_tokens(uniform: float) -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]])
    for rule in (Sampling(), Sampling(top_k=3), Sampling(top_p=0.99)):
        token = choose(logits, [rule], torch.tensor([uniform], dtype=torch.float64))
        assert int(token) in {1, 3}


def test_uniforms_are_even_and_repeatable() -> None:
    values = uniforms([3] * 50_000, range(50_000))
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.histogram(values, 20, (0, 1))[0]
    assert abs(counts - 2500).max() < 250
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.02
    other = uniforms([4] * 50_000, range(50_000))
    assert abs(np.corrcoef(values, other)[0, 1]) < 0.02
    assert uniforms([3], [17])[0] == values[17]


def test_penalties_push_logits_down() -> None:
    logits = torch.tensor([[2.0, -2.0, 3.0], [2.0, -2.0, 3.0]])
    seen = torch.tensor([[True, True, False], [True, True, False]])
    rules = [Sampling(repetition_penalty=2.0), Sampling()]
    expected = torch.tensor([[1.0, -4.0, 3.0], [2.0, -2.0, 3.0]])
    assert torch.equal(penalise(logits, seen, rules), expected)


def test_tokens_generated_before_are_discouraged() -> None:
    logits = torch.tensor([[2.0, -2.0, 3.0]] * 3)
    drawn = [[1, 2, 1, 1], [0], [0, 0]]
    rules = [
        Sampling(frequency_penalty=0.5, presence_penalty=1.0),
        Sampling(presence_penalty=-0.5),
        Sampling(),
    ]
    expected = torch.tensor([[2.0, -4.5, 1.5], [2.5, -2.0, 3.0], [2.0, -2.0, 3.0]])
    assert torch.equal(discourage(logits, drawn, rules), expected)
    assert torch.equal(logits, torch.tensor([[2.0, -2.0, 3.0]] * 3))
    assert discourage(logits, drawn, [Sampling()] * 3) is logits
    assert torch.equal(discourage(logits[:1], [[]], rules[:1]), logits[:1])


def test_what_was_seen_is_marked() -> None:
    seen = seen_in([[2, 0, 2], []], torch.zeros(2, 4))
    assert seen.tolist() == [[True, False, True, False], [False] * 4]


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"repetition_penalty": 0.0},
        {"frequency_penalty": float("nan")},
        {"presence_penalty": float("-inf")},
    ],
)
def test_rules_are_checked(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError) as error:
        Sampling(**fields)
    assert error.value.code == "invalid_sampling"
