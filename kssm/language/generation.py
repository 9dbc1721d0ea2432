"""One call of ``generate``: rows of an arena that step until each has ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from kssm.errors import InvalidInputError
from kssm.language.sampling import (
    MAX_SEED,
    Sampling,
    check_seed,
    choose,
    discourage,
    penalise,
    seen_in,
    uniforms,
)

if TYPE_CHECKING:
    from kssm.language.model import LanguageModel


class Piece(NamedTuple):
    """One generated token of prompt ``row``; ``number`` counts from 0."""

    row: int
    number: int
    token: int


@dataclass(frozen=True)
class Limits:
    """When a row ends, and how its tokens are chosen."""

    max_tokens: int
    sampling: Sampling
    stop_tokens: frozenset[int]

    @classmethod
    def checked(
        cls, max_tokens: int, sampling: Sampling, stop_tokens: Sequence[int], vocab_size: int
    ) -> Limits:
        """Raises ``invalid_sampling`` and ``invalid_tokens``."""
        if max_tokens < 1:
            raise InvalidInputError("max_tokens must be at least 1", code="invalid_sampling")
        return cls(max_tokens, sampling, frozenset(check_tokens(stop_tokens, vocab_size, 0)))


def check_tokens(tokens: Sequence[int], vocab_size: int, least: int = 1) -> list[int]:
    """``tokens`` if there are ``least`` of them and all are in the vocabulary.

    Raises InvalidInputError (``invalid_tokens``).
    """
    if len(tokens) < least:
        raise InvalidInputError("there are no tokens", code="invalid_tokens")
    for token in tokens:
        whole = isinstance(token, int) and not isinstance(token, bool)
        if not whole or not 0 <= token < vocab_size:
            raise InvalidInputError(
                f"tokens are whole numbers in 0 ... {vocab_size - 1}, not {token!r}",
                code="invalid_tokens",
            )
    return list(tokens)


class Generation:
    """Prompts on their way; rows that have ended are not stepped any more."""

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        limits: Limits,
        seed: int | None,
        generator: torch.Generator | None,
    ) -> None:
        self._model = model
        self._limits = limits
        self._prompts = [check_tokens(list(p), model.config.vocab_size) for p in prompts]
        self._seeds = _seeds(len(prompts), seed, generator)
        self._drawn: list[list[int]] = [[] for _ in prompts]

    def run(self) -> Iterator[Piece]:
        """The tokens, one of every row that has not ended after another."""
        if self._prompts:
            yield from self._rounds(*self._begin())

    def _begin(self) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
        """Arena (row 0 is scratch space), logits [N, V] and the tokens seen [N, V]."""
        model, prompts = self._model, self._prompts
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
        padded = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long)
        for row, prompt in zip(padded, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        ragged = None if bool((lengths == lengths[0]).all()) else lengths
        with torch.inference_mode():
            logits, state = model.prefill(padded.to(model.device), None, ragged)
            arena = model.initial_state(len(prompts) + 1)
            for name, entry in state.items():
                arena[name][1:] = entry
        return arena, logits, self._seen(logits)

    def _seen(self, logits: Tensor) -> Tensor | None:
        if self._limits.sampling.repetition_penalty == 1:
            return None
        return seen_in(self._prompts, logits)

    def _rounds(
        self, arena: dict[str, Tensor], logits: Tensor, seen: Tensor | None
    ) -> Iterator[Piece]:
        limits = self._limits
        rows = list(range(len(self._prompts)))
        for number in range(limits.max_tokens):
            tokens = self._choose(rows, number, logits, seen)
            chosen: list[int] = tokens.tolist()
            for row, token in zip(rows, chosen, strict=True):
                self._drawn[row].append(token)
                yield Piece(row, number, token)
            going = [i for i, token in enumerate(chosen) if token not in limits.stop_tokens]
            rows = [rows[i] for i in going]
            if not rows or number + 1 == limits.max_tokens:
                return
            with torch.inference_mode():
                slots = torch.tensor(rows, device=logits.device) + 1
                logits = self._model.step_(tokens[going], arena, slots)

    def _choose(
        self, rows: Sequence[int], number: int, logits: Tensor, seen: Tensor | None
    ) -> Tensor:
        rules = [self._limits.sampling] * len(rows)
        seeds = [self._seeds[row] for row in rows]
        draws = torch.from_numpy(uniforms(seeds, [number] * len(rows)))
        drawn = [self._drawn[row] for row in rows]
        with torch.inference_mode():
            if seen is None:
                fresh = discourage(logits, drawn, rules)
                return choose(fresh, rules, draws.to(logits.device))
            index = torch.tensor(rows, device=logits.device)
            penalised = discourage(penalise(logits, seen[index], rules), drawn, rules)
            tokens = choose(penalised, rules, draws.to(logits.device))
            seen[index, tokens] = True
            return tokens


def _seeds(rows: int, seed: int | None, generator: torch.Generator | None) -> list[int]:
    if seed is not None:
        return [check_seed((check_seed(seed) + row) % (MAX_SEED + 1)) for row in range(rows)]
    device = "cpu" if generator is None else generator.device
    drawn = torch.randint(MAX_SEED, (rows,), generator=generator, device=device)
    return drawn.tolist()
