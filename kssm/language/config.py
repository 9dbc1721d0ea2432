"""The shape of a language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kssm.errors import InvalidInputError
from kssm.models.registry import config_from_mapping, name_of
from kssm.models.stack import StackConfig


@dataclass(frozen=True)
class LanguageConfig:
    """A backbone between an embedding and an output layer.

    Attributes:
        backbone: sizes of the stack; their class says which model of the registry it is.
        vocab_size: tokens there are: 0 ... vocab_size - 1.
        tied: the output layer is the embedding's transpose.
        bos_token: what a text begins with, None = nothing.
        eos_tokens: what ends a text.
    """

    backbone: StackConfig
    vocab_size: int
    tied: bool = True
    bos_token: int | None = None
    eos_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.vocab_size < 1:
            raise InvalidInputError("vocab_size must be positive", code="invalid_config")
        named = {*self.eos_tokens} | ({self.bos_token} - {None})
        if not all(0 <= token < self.vocab_size for token in named if token is not None):
            raise InvalidInputError(
                "bos_token and eos_tokens must lie in the vocabulary", code="invalid_config"
            )
        object.__setattr__(self, "eos_tokens", tuple(self.eos_tokens))

    @property
    def model(self) -> str:
        """The registry's name of the backbone."""
        return name_of(self.backbone)

    def to_mapping(self) -> dict[str, Any]:
        """JSON-ready; ``from_mapping`` is the inverse."""
        return {"model": self.model, **asdict(self)}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> LanguageConfig:
        """What ``to_mapping`` gave; raises ``invalid_config``, ``unknown_model``."""
        fields = dict(values)
        fields["eos_tokens"] = tuple(fields.get("eos_tokens", ()))
        try:
            backbone = config_from_mapping(fields.pop("model"), fields.pop("backbone"))
            return cls(backbone, **fields)
        except (KeyError, TypeError) as error:
            raise InvalidInputError(f"not a language model: {error}", "invalid_config") from error
