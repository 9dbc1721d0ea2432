"""Choosing the next token: every row by its own rules and its own random numbers.

A row's choice depends on its logits, its rules, its seed and the token's number alone, so text
generated in a batch, alone, or in a server among others is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kssm.errors import InvalidInputError

_GOLDEN: Final = 0x9E3779B97F4A7C15
MAX_SEED: Final = 2**63 - 1


@dataclass(frozen=True)
class Sampling:
    """Rules of choice.

    Attributes:
        temperature: divides the logits; 0 = always the likeliest token.
        top_k: only the k likeliest tokens, 0 = all.
        top_p: only the likeliest tokens that together reach this probability.
        repetition_penalty: positive logits of tokens that occurred before are divided by it,
            negative ones multiplied (Keskar et al., "CTRL", 2019); 1 = off.
        frequency_penalty: taken off the logit of a token for each time it was generated.
        presence_penalty: taken off the logits of tokens that were generated at all.

    Raises InvalidInputError (``invalid_sampling``).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise _bad("temperature must be finite and not negative")
        if self.top_k < 0:
            raise _bad("top_k must not be negative")
        if not 0 < self.top_p <= 1:
            raise _bad("top_p must lie in (0, 1]")
        if not 0 < self.repetition_penalty < float("inf"):
            raise _bad("repetition_penalty must be finite and positive")
        for name in ("frequency_penalty", "presence_penalty"):
            if not abs(getattr(self, name)) < float("inf"):
                raise _bad(f"{name} must be finite")

    @property
    def discourages(self) -> bool:
        """Whether tokens generated before become less likely."""
        return self.frequency_penalty != 0 or self.presence_penalty != 0

    @property
    def truncates(self) -> bool:
        """Whether some tokens are ruled out."""
        return self.top_k > 0 or self.top_p < 1


def uniforms(seeds: Sequence[int], numbers: Sequence[int]) -> NDArray[np.float64]:
    """A number in [0, 1) for each pair of seed and token number: SplitMix64 of both.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    with np.errstate(over="ignore"):
        mixed = _mix(np.array(seeds, dtype=np.uint64)) + _mix(
            (np.array(numbers, dtype=np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)
        )
        return (_mix(mixed) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def choose(logits: Tensor, rules: Sequence[Sampling], uniform: Tensor) -> Tensor:
    """The next token of each row.

    Args:
        logits: [N, vocabulary].
        rules: one a row; penalties are applied before (``penalise``, ``discourage``).
        uniform: [N] float64 random numbers in [0, 1), on the same device.

    Returns:
        [N] int64.
    """
    tokens = logits.argmax(-1)
    for truncated in (False, True):
        rows = [
            i
            for i, rule in enumerate(rules)
            if rule.temperature > 0 and rule.truncates == truncated
        ]
        if rows:
            index = torch.tensor(rows, device=logits.device)
            picked = [rules[i] for i in rows]
            draw = _from_the_likeliest if truncated else _from_all
            tokens[index] = draw(_scaled(logits[index], picked), picked, uniform[index])
    return tokens


def penalise(logits: Tensor, seen: Tensor, rules: Sequence[Sampling]) -> Tensor:
    """Logits [N, V] after the repetition penalty for the tokens ``seen`` [N, V] (bool)."""
    if all(rule.repetition_penalty == 1 for rule in rules):
        return logits
    penalty = _column([rule.repetition_penalty for rule in rules], logits)
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def discourage(logits: Tensor, drawn: Sequence[Sequence[int]], rules: Sequence[Sampling]) -> Tensor:
    """Logits [N, V] after frequency and presence penalties for the tokens ``drawn`` a row."""
    if not any(rule.discourages for rule in rules):
        return logits
    penalised = logits.clone()
    for row, tokens, rule in zip(penalised, drawn, rules, strict=True):
        ids, counts = torch.tensor(tokens, dtype=torch.long).unique(return_counts=True)
        penalty = rule.frequency_penalty * counts + rule.presence_penalty
        row[ids.to(row.device)] -= penalty.to(row)
    return penalised


def seen_in(drawn: Sequence[Sequence[int]], logits: Tensor) -> Tensor:
    """Which tokens are in each row's ``drawn``: [N, V] bool."""
    seen = torch.zeros_like(logits, dtype=torch.bool)
    for row, tokens in zip(seen, drawn, strict=True):
        row[torch.tensor(tokens, dtype=torch.long, device=row.device)] = True
    return seen


def check_seed(seed: int) -> int:
    """``seed`` if it is in 0 ... 2^63 - 1; raises ``invalid_sampling``."""
    if not 0 <= seed <= MAX_SEED:
        raise _bad("a seed lies in 0 ... 2^63 - 1")
    return seed


def _scaled(logits: Tensor, rules: Sequence[Sampling]) -> Tensor:
    wide = logits.double()
    peak = wide.amax(-1, keepdim=True)
    return (wide - peak) / _column([rule.temperature for rule in rules], wide)


def _from_all(scaled: Tensor, _: Sequence[Sampling], uniform: Tensor) -> Tensor:
    return _invert(scaled.softmax(-1), uniform)


def _from_the_likeliest(scaled: Tensor, rules: Sequence[Sampling], uniform: Tensor) -> Tensor:
    vocabulary = scaled.shape[-1]
    order = scaled.argsort(dim=-1, descending=True, stable=True)
    probability = scaled.gather(-1, order).softmax(-1)
    place = torch.arange(vocabulary, device=scaled.device)
    counts = torch.tensor([rule.top_k or vocabulary for rule in rules], device=scaled.device)
    kept = torch.where(place < counts.unsqueeze(-1), probability, 0.0)
    kept = kept / kept.sum(-1, keepdim=True)
    before = kept.cumsum(-1) - kept
    reach = _column([rule.top_p for rule in rules], kept)
    kept = torch.where((before < reach) | (place == 0), kept, 0.0)
    return order.gather(-1, _invert(kept, uniform).unsqueeze(-1)).squeeze(-1)


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """The first place at which the running sum of weights [N, V] passes uniform x total."""
    running = weights.cumsum(-1)
    level = uniform.unsqueeze(-1) * running[:, -1:]
    place = torch.searchsorted(running, level, right=True).squeeze(-1)
    last = (weights > 0).long().cumsum(-1).argmax(-1)  # rounding must not pick what is ruled out
    return torch.minimum(place, last)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(-1)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _bad(message: str) -> InvalidInputError:
    return InvalidInputError(message, code="invalid_sampling")
