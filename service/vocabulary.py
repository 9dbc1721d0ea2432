"""Text and token ids as language sessions take and give them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from kssm.errors import InvalidInputError
from kssm.language.generation import check_tokens
from kssm.language.rows import LanguageRows
from kssm.language.tokenizer import Tokenizer, no_tokenizer
from kssm.runtime import Engine
from service.samples import Float64


@dataclass(frozen=True)
class Vocabulary:
    """What a language model's tokens are. Methods raise ``InvalidInputError``.

    Attributes:
        size: tokens there are.
        eos: tokens that end a text.
        tokenizer: None where the model only knows ids.
    """

    size: int
    eos: tuple[int, ...]
    tokenizer: Tokenizer | None = None

    @classmethod
    def of(cls, engine: Engine) -> Vocabulary | None:
        """The vocabulary of the engine's model; None for a forecaster."""
        if engine.vocab_size is None:
            return None
        rows = cast("LanguageRows", engine.forecaster)
        return cls(engine.vocab_size, rows.model.config.eos_tokens, rows.tokenizer)

    def ids(self, tokens: Sequence[int] | None, text: str | None) -> Float64:
        """The tokens of a message [n, 1] that carries either (`invalid_tokens`)."""
        if (tokens is None) == (text is None):
            raise InvalidInputError("give either tokens or text", code="invalid_tokens")
        return self._column(self._encode(text, begins=False) if tokens is None else tokens)

    def prompt(self, prompt: object) -> Float64:
        """A session's first tokens [n, 1]: text or a list of ids."""
        if isinstance(prompt, str):
            return self._column(self._encode(prompt, begins=True))
        if not isinstance(prompt, list):
            raise InvalidInputError("the prompt is text or token ids", code="invalid_tokens")
        return self._column(cast("list[int]", prompt))

    def text(self, tokens: Sequence[int]) -> str | None:
        """The text of tokens; None without a tokenizer."""
        return None if self.tokenizer is None else self.tokenizer.decode(tokens)

    def decoder(self) -> Callable[[int], str] | None:
        """From one token after another to what each adds; None without a tokenizer."""
        return None if self.tokenizer is None else self.tokenizer.decoder()

    def stop(self, stops: Sequence[int | str], *, ignore_eos: bool) -> Callable[[int], bool]:
        """Whether a token, told one after another, is the last of its text.

        That is one of ``stops``, the token that completes one of them that is text, or an
        ``eos`` token unless they are to be ignored.
        """
        ids = frozenset(
            check_tokens([stop for stop in stops if isinstance(stop, int)], self.size, 0)
        )
        ends = ids if ignore_eos else ids | frozenset(self.eos)
        words = [stop for stop in stops if isinstance(stop, str)]
        if not words:
            return ends.__contains__
        if not all(words):
            raise InvalidInputError("a stop must not be empty", code="invalid_sampling")
        if self.tokenizer is None:
            raise no_tokenizer()
        found = _Watch(words, self.tokenizer.decoder())
        return lambda token: found(token) or token in ends

    def _encode(self, text: str | None, *, begins: bool) -> list[int]:
        if self.tokenizer is None:
            raise no_tokenizer()
        return self.tokenizer.encode(text or "", begins=begins)

    def _column(self, tokens: Sequence[int]) -> Float64:
        return np.array(check_tokens(tokens, self.size), dtype=np.float64)[:, None]


class _Watch:
    """Looks for words in a text that comes in pieces."""

    def __init__(self, words: Sequence[str], decode: Callable[[int], str]) -> None:
        self._words = words
        self._decode = decode
        self._kept = max(map(len, words)) - 1
        self._tail = ""

    def __call__(self, token: int) -> bool:
        text = self._tail + self._decode(token)
        self._tail = text[-self._kept :] if self._kept else ""
        return any(word in text for word in self._words)
