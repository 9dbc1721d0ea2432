"""RWKV-6 as the Hugging Face checkpoints of its authors ("v6-Finch") name their weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kssm.checkpoint.names import NameMap, Weight, single
from kssm.models.rwkv6 import RWKV6Config

_STREAMS = "wkvrg"
"""Decay, key, value, receptance, gate: the order of ``TimeMix.mix``."""


def rwkv6_names(config: RWKV6Config) -> NameMap:
    """The stack's weights; the norm before the first block is part of the language model."""
    once = [*_norm("ln_out", "norm")]
    if config.input_norm:
        once += _norm("blocks.0.pre_ln", "blocks.0.input_norm")
    mixes = [
        _shift("attention.time_maa_x", "time.mix_input"),
        _shift("attention.time_decay", "time.decay"),
        _shift("feed_forward.time_maa_k", "channel.mix_key"),
        _shift("feed_forward.time_maa_r", "channel.mix_receptance"),
    ]
    return NameMap(tuple(once), (*mixes, *_time_weights(), *_channel_weights()))


def _time_weights() -> list[Weight]:
    attention = "blocks.{i}.attention."
    renamed = {"key": "key", "value": "value", "receptance": "receptance", "gate": "gate"}
    linear = {**renamed, "output": "output"}
    shifts = tuple(f"{attention}time_maa_{name}" for name in _STREAMS)
    return [
        *_norm("blocks.{i}.ln1", "blocks.{i}.time_norm"),
        *_norm("blocks.{i}.ln2", "blocks.{i}.channel_norm"),
        Weight(shifts, "blocks.{i}.time.mix", _stacked, _unstacked),
        _transposed("attention.time_maa_w1", "time.mix_down.weight"),
        single(attention + "time_maa_w2", "blocks.{i}.time.mix_up"),
        _transposed("attention.time_decay_w1", "time.decay_down.weight"),
        _transposed("attention.time_decay_w2", "time.decay_up.weight"),
        single(attention + "time_faaaa", "blocks.{i}.time.bonus"),
        single(attention + "ln_x.weight", "blocks.{i}.time.head_weight"),
        single(attention + "ln_x.bias", "blocks.{i}.time.head_bias"),
        *(
            single(f"{attention}{theirs}.weight", f"blocks.{{i}}.time.{ours}.weight")
            for theirs, ours in linear.items()
        ),
    ]


def _channel_weights() -> list[Weight]:
    return [
        single(f"blocks.{{i}}.feed_forward.{name}.weight", f"blocks.{{i}}.channel.{name}.weight")
        for name in ("key", "receptance", "value")
    ]


def _norm(theirs: str, ours: str) -> list[Weight]:
    return [single(f"{theirs}.{kind}", f"{ours}.{kind}") for kind in ("weight", "bias")]


def _shift(theirs: str, ours: str) -> Weight:
    """A vector that they keep as [1, 1, d_model]."""
    return single(
        f"blocks.{{i}}.{theirs}",
        f"blocks.{{i}}.{ours}",
        lambda tensor: tensor.reshape(-1),
        lambda tensor: tensor.reshape(1, 1, -1),
    )


def _transposed(theirs: str, ours: str) -> Weight:
    def turn(tensor: Tensor) -> Tensor:
        return tensor.t().contiguous()

    return single(f"blocks.{{i}}.{theirs}", f"blocks.{{i}}.{ours}", turn, turn)


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.reshape(-1) for tensor in tensors])


def _unstacked(tensor: Tensor) -> Sequence[Tensor]:
    return [row.reshape(1, 1, -1) for row in tensor]
