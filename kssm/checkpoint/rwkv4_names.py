"""RWKV-4 as Hugging Face's ``RwkvModel`` names its weights."""

from __future__ import annotations

from typing import Final

from kssm.checkpoint.names import NameMap, Weight, single
from kssm.models.rwkv4 import RWKV4Config

_MIXES: Final = {
    "attention.time_mix_key": "mix_key",
    "attention.time_mix_value": "mix_value",
    "attention.time_mix_receptance": "mix_receptance",
    "feed_forward.time_mix_key": "channel_mix_key",
    "feed_forward.time_mix_receptance": "channel_mix_receptance",
}
_MATRICES: Final = {
    "attention.key": "key",
    "attention.value": "value",
    "attention.receptance": "receptance",
    "attention.output": "output",
    "feed_forward.key": "channel_key",
    "feed_forward.receptance": "channel_receptance",
    "feed_forward.value": "channel_value",
}
_VECTORS: Final = {"attention.time_decay": "decay", "attention.time_first": "bonus"}


def rwkv4_names(config: RWKV4Config) -> NameMap:
    """The stack's weights; the norm before the first block is part of the language model."""
    once = _norm("ln_out", "norm")
    if config.input_norm:
        once += _norm("blocks.0.pre_ln", "blocks.0.input_norm")
    block = "blocks.{i}."
    layer = [
        *_norm(f"{block}ln1", f"{block}time_norm"),
        *_norm(f"{block}ln2", f"{block}channel_norm"),
        *(single(block + theirs, block + ours) for theirs, ours in _VECTORS.items()),
        *(_shift(block + theirs, block + ours) for theirs, ours in _MIXES.items()),
        *(
            single(f"{block}{theirs}.weight", f"{block}{ours}.weight")
            for theirs, ours in _MATRICES.items()
        ),
    ]
    return NameMap(tuple(once), tuple(layer))


def _norm(theirs: str, ours: str) -> list[Weight]:
    return [single(f"{theirs}.{kind}", f"{ours}.{kind}") for kind in ("weight", "bias")]


def _shift(theirs: str, ours: str) -> Weight:
    """A vector that they keep as [1, 1, d_model]."""
    return single(theirs, ours, lambda t: t.reshape(-1), lambda t: t.reshape(1, 1, -1))
