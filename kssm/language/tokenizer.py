"""Text to tokens and back, where a model's folder has a ``tokenizer.json``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kssm.errors import CheckpointError, InvalidInputError

if TYPE_CHECKING:
    import tokenizers

TOKENIZER_FILE: Final = "tokenizer.json"


class Tokenizer:
    """A vocabulary of the package ``tokenizers``."""

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        self._inner = inner

    @classmethod
    def find(cls, folder: str | Path) -> Tokenizer | None:
        """The folder's tokenizer; None where it has none, or the package is not installed.

        Raises CheckpointError for a file that is not a tokenizer.
        """
        path = Path(folder) / TOKENIZER_FILE
        if not path.is_file():
            return None
        try:
            import tokenizers
        except ImportError:
            return None
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # the package raises nothing more exact
            raise CheckpointError(f"cannot read {path}: {error}") from error

    def encode(self, text: str, *, begins: bool = False) -> list[int]:
        """Ids of ``text``; with the tokens that begin a text, where the vocabulary has such."""
        return self._inner.encode(text, add_special_tokens=begins).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        return self._inner.decode(list(tokens))

    def decoder(self) -> Callable[[int], str]:
        """A function from one token after another to what each adds to the text.

        A token that ends inside a character adds nothing; the one that completes it adds it all.
        """
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=True)

        def step(token: int) -> str:
            return stream.step(self._inner, token) or ""

        return step


def no_tokenizer() -> InvalidInputError:
    """The error of sending text to a model that only knows ids."""
    return InvalidInputError(
        "the server has no tokenizer for this model (tokenizer.json beside the weights, and the "
        "package tokenizers, pip install 'kssm[language]'): send token ids",
        code="no_tokenizer",
    )
