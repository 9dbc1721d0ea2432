"""Mamba and Mamba-2 as Hugging Face's ``MambaModel`` and ``Mamba2Model`` name their weights.

In a causal language model's file the same names carry the prefix ``backbone.``; the embedding and
the output layer around the stack are not part of these tables.
"""

from __future__ import annotations

from typing import Final

from torch import Tensor

from kssm.checkpoint.names import NameMap, single


def _taps_first(weight: Tensor) -> Tensor:
    """A depth-wise filter [channels, 1, taps] -> [taps, channels]."""
    return weight.squeeze(1).t().contiguous()


def _channels_first(weight: Tensor) -> Tensor:
    """A depth-wise filter [taps, channels] -> [channels, 1, taps]."""
    return weight.t().unsqueeze(1).contiguous()


_ONCE: Final = (single("norm_f.weight", "norm.weight"),)

_MIXER: Final = (
    single("layers.{i}.norm.weight", "blocks.{i}.norm.weight"),
    single("layers.{i}.mixer.in_proj.weight", "blocks.{i}.in_proj.weight"),
    single(
        "layers.{i}.mixer.conv1d.weight", "blocks.{i}.conv.weight", _taps_first, _channels_first
    ),
    single("layers.{i}.mixer.conv1d.bias", "blocks.{i}.conv.bias"),
    single("layers.{i}.mixer.A_log", "blocks.{i}.a_log"),
    single("layers.{i}.mixer.D", "blocks.{i}.skip"),
    single("layers.{i}.mixer.out_proj.weight", "blocks.{i}.out_proj.weight"),
)

MAMBA_NAMES: Final = NameMap(
    _ONCE,
    (
        *_MIXER,
        single("layers.{i}.mixer.x_proj.weight", "blocks.{i}.select.weight"),
        single("layers.{i}.mixer.dt_proj.weight", "blocks.{i}.dt_up.weight"),
        single("layers.{i}.mixer.dt_proj.bias", "blocks.{i}.dt_bias"),
    ),
)

MAMBA2_NAMES: Final = NameMap(
    _ONCE,
    (
        *_MIXER,
        single("layers.{i}.mixer.dt_bias", "blocks.{i}.dt_bias"),
        single("layers.{i}.mixer.norm.weight", "blocks.{i}.out_norm.weight"),
    ),
)
