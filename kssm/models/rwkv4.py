"""RWKV-4 ("Dove"): token shift, a decaying average of values for each channel, channel mix.

Source: Peng et al., "RWKV: Reinventing RNNs for the Transformer Era", 2023.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kssm.models.base import State, StateSpec, fresh_state
from kssm.models.layers import init_linear
from kssm.models.rwkv6 import LayerNorm
from kssm.models.stack import Block, Stack, StackConfig, compute_dtype, remember_, state_dtype
from kssm.models.tokens import last_valid, previous_tokens
from kssm.ops.wkv4 import wkv4, wkv4_step_

_MAX_LOG_RATE = 12.0
"""A decay by exp(-exp(12)) a token is zero in every dtype; the bound keeps the state finite."""


@dataclass(frozen=True)
class RWKV4Config(StackConfig):
    """Sizes of an RWKV-4 stack.

    Attributes:
        d_inner: channels of the recurrence, each of three numbers.
        d_ffn: hidden width of the channel mix.
        input_norm: normalise the tokens before the first block, as language models do.
        norm_eps: epsilon of the layer norms.
    """

    d_model: int = 256
    n_layers: int = 5
    d_inner: int = 256
    d_ffn: int = 1088
    input_norm: bool = False
    norm_eps: float = 1e-5

    presets: ClassVar[Mapping[str, Mapping[str, int]]] = {
        "tiny": {"d_model": 48, "n_layers": 3, "d_inner": 48, "d_ffn": 128},
        "small": {"d_model": 128, "n_layers": 3, "d_inner": 128, "d_ffn": 384},
        "base": {"d_model": 256, "n_layers": 5, "d_inner": 256, "d_ffn": 1088},
        "large": {"d_model": 512, "n_layers": 8, "d_inner": 512, "d_ffn": 2048},
    }

    def __post_init__(self) -> None:
        sizes = (self.d_model, self.n_layers, self.d_inner, self.d_ffn)
        self.require(min(sizes) >= 1, "sizes must be positive")


class RWKV4Block(Block):
    """Time mix and channel mix, each behind a layer norm and added to the residual stream.

    State: the normalised last token of each mix ("time_shift", "channel_shift" [d_model]) and
    numerator, denominator and peak of each channel's average ("state" [d_inner, 3]).
    """

    recurrent: ClassVar[frozenset[str]] = frozenset({"decay"})

    def __init__(self, config: RWKV4Config, index: int) -> None:
        super().__init__()
        width, inner = config.d_model, config.d_inner
        first = config.input_norm and index == 0
        self.config = config
        self.input_norm = LayerNorm(width, config.norm_eps) if first else nn.Identity()
        self.time_norm = LayerNorm(width, config.norm_eps)
        self.mix_key = nn.Parameter(torch.empty(width))
        self.mix_value = nn.Parameter(torch.empty(width))
        self.mix_receptance = nn.Parameter(torch.empty(width))
        self.decay = nn.Parameter(torch.empty(inner))
        self.bonus = nn.Parameter(torch.empty(inner))
        self.key = init_linear(width, inner)
        self.value = init_linear(width, inner)
        self.receptance = init_linear(width, inner)
        self.output = init_linear(inner, width, std=(config.n_layers * inner) ** -0.5)
        self.channel_norm = LayerNorm(width, config.norm_eps)
        self.channel_mix_key = nn.Parameter(torch.empty(width))
        self.channel_mix_receptance = nn.Parameter(torch.empty(width))
        self.channel_key = init_linear(width, config.d_ffn)
        self.channel_receptance = init_linear(width, width)
        std = (config.n_layers * config.d_ffn) ** -0.5
        self.channel_value = init_linear(config.d_ffn, width, std=std)
        _init_mixes(self, index)

    def state_spec(self) -> StateSpec:
        config, dtype = self.config, state_dtype(self.decay.dtype)
        return {
            "time_shift": ((config.d_model,), dtype),
            "channel_shift": ((config.d_model,), dtype),
            "state": ((config.d_inner, 3), dtype),
        }

    def forward(
        self, x: Tensor, state: State | None, lengths: Tensor | None, dt: Tensor | None
    ) -> tuple[Tensor, State]:
        if state is None:
            state = fresh_state(self.state_spec(), len(x), x.device)
        dtype = compute_dtype(x)
        x = self.input_norm(x)
        normed = self.time_norm(x).to(dtype)
        k, v, r = self._project(normed, previous_tokens(normed, state["time_shift"]))
        y, average = wkv4(
            k, v, self._rate(), self._bonus(), state["state"].to(k.dtype), dt, lengths
        )
        x = x + self._read(y, r)
        channel = self.channel_norm(x).to(dtype)
        x = x + self._mix_channels(channel, previous_tokens(channel, state["channel_shift"]))
        return x, {
            "time_shift": last_valid(normed, state["time_shift"], lengths),
            "channel_shift": last_valid(channel, state["channel_shift"], lengths),
            "state": average,
        }

    def step_(self, x: Tensor, arena: State, slots: Tensor, dt: Tensor | None) -> Tensor:
        dtype = compute_dtype(x)
        x = self.input_norm(x)
        normed = self.time_norm(x).to(dtype)
        k, v, r = self._project(normed, arena["time_shift"][slots].to(dtype))
        y = wkv4_step_(k, v, self._rate(), self._bonus(), arena["state"], slots, dt)
        x = x + self._read(y, r)
        remember_(arena["time_shift"], slots, normed)
        normed = self.channel_norm(x).to(dtype)
        before = arena["channel_shift"][slots].to(dtype)
        remember_(arena["channel_shift"], slots, normed)
        return x + self._mix_channels(normed, before)

    def _project(self, x: Tensor, previous: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """k and v [..., d_inner] in the state's dtype, and the receptance."""
        wide = state_dtype(self.decay.dtype)
        k = self.key(_blend(x, previous, self.mix_key)).to(wide)
        v = self.value(_blend(x, previous, self.mix_value)).to(wide)
        return k, v, self.receptance(_blend(x, previous, self.mix_receptance))

    def _rate(self) -> Tensor:
        """Decay of a weight's logarithm a token [d_inner]."""
        wide = self.decay.to(state_dtype(self.decay.dtype))
        return wide.clamp(max=_MAX_LOG_RATE).exp()

    def _bonus(self) -> Tensor:
        return self.bonus.to(state_dtype(self.decay.dtype))

    def _read(self, y: Tensor, receptance: Tensor) -> Tensor:
        return self.output((receptance.sigmoid() * y).to(receptance.dtype))

    def _mix_channels(self, x: Tensor, previous: Tensor) -> Tensor:
        hidden = F.relu(self.channel_key(_blend(x, previous, self.channel_mix_key))).square()
        gate = self.channel_receptance(_blend(x, previous, self.channel_mix_receptance))
        return gate.sigmoid() * self.channel_value(hidden)


class RWKV4(Stack):
    """A stack of RWKV-4 blocks with a final layer norm."""

    def __init__(self, config: RWKV4Config, *, gradient_checkpointing: bool = False) -> None:
        blocks = [RWKV4Block(config, index) for index in range(config.n_layers)]
        norm = LayerNorm(config.d_model, config.norm_eps)
        super().__init__(
            config.d_model, blocks, norm, gradient_checkpointing=gradient_checkpointing
        )
        self.config = config


def _blend(x: Tensor, previous: Tensor, share: Tensor) -> Tensor:
    """``share`` of the token and the rest of the one before it."""
    return (x * share + previous * (1 - share)).to(x.dtype)


@torch.no_grad()
def _init_mixes(block: RWKV4Block, index: int) -> None:
    """The authors' initialisation: deeper blocks look back less and remember longer."""
    layers, width = block.config.n_layers, block.config.d_model
    depth, rest = index / max(layers - 1, 1), 1 - index / layers
    place = torch.arange(width) / width
    spread = torch.arange(block.config.d_inner) / max(block.config.d_inner - 1, 1)
    block.mix_key.copy_(place**rest)
    block.mix_value.copy_(place**rest + 0.3 * depth)
    block.mix_receptance.copy_(place ** (0.5 * rest))
    block.channel_mix_key.copy_(place**rest)
    block.channel_mix_receptance.copy_(place**rest)
    block.decay.copy_(-5 + 8 * spread ** (0.7 + 1.3 * depth))
    zigzag = 0.5 * ((torch.arange(block.config.d_inner) + 1) % 3 - 1)
    block.bonus.copy_(math.log(0.3) + zigzag)
