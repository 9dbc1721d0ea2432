"""Language models of Hugging Face's ``transformers``: their configuration and names as ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from kssm.checkpoint import hugging_face_configs as configs
from kssm.checkpoint.hugging_face_fields import Fields, finished
from kssm.checkpoint.llama_names import llama_names
from kssm.checkpoint.loading import Naming
from kssm.checkpoint.mamba_names import MAMBA2_NAMES, MAMBA_NAMES
from kssm.checkpoint.names import NameMap, single
from kssm.checkpoint.rwkv4_names import rwkv4_names
from kssm.checkpoint.rwkv6_names import rwkv6_names
from kssm.errors import CheckpointError
from kssm.models.mamba import MambaConfig
from kssm.models.mamba2 import Mamba2Config
from kssm.models.rwkv4 import RWKV4Config
from kssm.models.rwkv6 import RWKV6Config
from kssm.models.stack import StackConfig
from kssm.models.transformer import TransformerConfig


@dataclass(frozen=True)
class Translation:
    """A language model of theirs in our words.

    Attributes:
        backbone: configuration of the stack.
        vocab_size: rows of the embedding.
        tied: whether the output layer is the embedding.
        bos_token: what a text begins with, None = nothing.
        eos_tokens: what a text may end with.
    """

    backbone: StackConfig
    vocab_size: int
    tied: bool
    bos_token: int | None = None
    eos_tokens: tuple[int, ...] = ()

    def naming(self) -> Naming:
        """Their names of a ``LanguageModel``'s weights ("embedding", "backbone", "head")."""
        layout = _layout(self.backbone)
        stack = layout.names(self.backbone).weights(self.backbone.n_layers)
        prefix = layout.prefix
        weights = [weight.under(f"{prefix}.", "backbone.") for weight in stack]
        embedding = f"{prefix}.{layout.embedding}.weight"
        weights.append(single(embedding, "embedding.weight"))
        output = f"{layout.output}.weight"
        if not self.tied:
            weights.append(single(output, "head.weight"))
        aliases = {output: embedding} if self.tied else {}
        return Naming(weights, aliases, ignored=("rotary_emb.inv_freq",))


@dataclass(frozen=True)
class _Layout:
    """What differs between their architectures around the stack."""

    read: Callable[[Fields], StackConfig]
    write: Callable[[Any], dict[str, Any]]
    names: Callable[[Any], NameMap]
    prefix: str
    embedding: str
    output: str = "lm_head"


_MAMBA = _Layout(
    configs.read_mamba, configs.write_mamba, lambda _: MAMBA_NAMES, "backbone", "embeddings"
)
_MAMBA2 = _Layout(
    configs.read_mamba2, configs.write_mamba2, lambda _: MAMBA2_NAMES, "backbone", "embeddings"
)
_LLAMA = _Layout(configs.read_llama, configs.write_llama, llama_names, "model", "embed_tokens")
_RWKV4 = _Layout(configs.read_rwkv4, configs.write_rwkv4, rwkv4_names, "rwkv", "embeddings", "head")
_RWKV6 = _Layout(configs.read_rwkv6, configs.write_rwkv6, rwkv6_names, "rwkv", "embeddings", "head")

_BY_TYPE: Mapping[str, _Layout] = MappingProxyType(
    {
        "mamba": _MAMBA,
        "mamba2": _MAMBA2,
        "llama": _LLAMA,
        "mistral": _LLAMA,
        "qwen2": _LLAMA,
        "rwkv": _RWKV4,
        "rwkv6": _RWKV6,
    }
)
_BY_CONFIG: Mapping[type[StackConfig], _Layout] = MappingProxyType(
    {
        MambaConfig: _MAMBA,
        Mamba2Config: _MAMBA2,
        TransformerConfig: _LLAMA,
        RWKV4Config: _RWKV4,
        RWKV6Config: _RWKV6,
    }
)


def from_hugging_face(config: Mapping[str, Any], window: int | None = None) -> Translation:
    """The model that their ``config.json`` describes.

    Args:
        config: the file's content.
        window: tokens that attention sees and a session keeps, where theirs would be longer.

    Raises:
        CheckpointError: ``unsupported_checkpoint`` names every setting that we cannot honour.
    """
    kind = config.get("model_type")
    if kind not in _BY_TYPE:
        raise CheckpointError(
            f"no model_type {kind!r}, only {', '.join(_BY_TYPE)}", code="unsupported_checkpoint"
        )
    fields = Fields(config)
    vocab_size = fields.number("vocab_size")
    tied = fields.flag("tie_word_embeddings", configs.TIED_BY_DEFAULT.get(str(kind), False))
    backbone = finished(fields, _BY_TYPE[str(kind)].read)
    if window is not None and isinstance(backbone, TransformerConfig):
        backbone = configs.narrowed(backbone, window)
    eos = config.get("eos_token_id")
    return Translation(backbone, vocab_size, tied, config.get("bos_token_id"), _ids(eos))


def to_hugging_face(translation: Translation) -> dict[str, Any]:
    """The ``config.json`` with which ``transformers`` builds the same model.

    Raises ``unsupported_checkpoint`` for models that it does not have.
    """
    layout = _layout(translation.backbone)
    eos = list(translation.eos_tokens)
    common = {
        "vocab_size": translation.vocab_size,
        "tie_word_embeddings": translation.tied,
        "bos_token_id": translation.bos_token,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "dtype": "float32",
    }
    return {**layout.write(translation.backbone), **common}


def _layout(config: StackConfig) -> _Layout:
    layout = _BY_CONFIG.get(type(config))
    if layout is None:
        name = type(config).__name__.removesuffix("Config")
        raise CheckpointError(
            f"transformers has no model like {name}", code="unsupported_checkpoint"
        )
    return layout


def _ids(value: object) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,)
    return tuple(int(item) for item in value) if isinstance(value, list) else ()
