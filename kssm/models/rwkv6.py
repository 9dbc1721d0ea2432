"""RWKV-6 ("Finch"): token shift, a matrix state with data-dependent decay, channel mix.

Source: Peng et al., "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence", 2024.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kssm.models.base import State, StateSpec, fresh_state
from kssm.models.layers import init_linear
from kssm.models.stack import Block, Stack, StackConfig, compute_dtype, state_dtype
from kssm.models.tokens import last_valid, previous_tokens
from kssm.ops.eager import outside_graph
from kssm.ops.launch import runs_triton
from kssm.ops.token_shift import BOUND, shift_step_
from kssm.ops.wkv6 import wkv6, wkv6_step_

_STREAMS = 5
"""Inputs mixed with the previous token: decay, key, value, receptance, gate, in this order."""

_Shifted = tuple[Tensor, Tensor, Tensor]
"""A normalised token, what the token before has more, and mixtures of the two (``shift_step_``)."""

_MAX_LOG_RATE = 30.0
_MAX_DECAY = 1000.0
"""Decays beyond exp(-1000) are zero even in fp64; the bounds keep gradients finite."""


@dataclass(frozen=True)
class RWKV6Config(StackConfig):
    """Sizes of an RWKV-6 stack.

    Attributes:
        head_size: key and value channels of a head; a head's state is head_size x head_size.
        d_ffn: hidden width of the channel mix.
        mix_rank: rank of the data-dependent part of the token shift.
        decay_rank: rank of the data-dependent part of the decay.
        input_norm: normalise the tokens before the first block, as language models do.
        norm_eps: epsilon of the layer norms.
        head_eps: epsilon of the norm of each head's output.
    """

    d_model: int = 256
    n_layers: int = 5
    head_size: int = 64
    d_ffn: int = 768
    mix_rank: int = 32
    decay_rank: int = 64
    input_norm: bool = False
    norm_eps: float = 1e-5
    head_eps: float = 64e-5

    presets: ClassVar[Mapping[str, Mapping[str, int]]] = {
        "tiny": {
            "d_model": 48,
            "n_layers": 2,
            "head_size": 16,
            "d_ffn": 128,
            "mix_rank": 8,
            "decay_rank": 8,
        },
        "small": {
            "d_model": 112,
            "n_layers": 3,
            "head_size": 28,
            "d_ffn": 336,
            "mix_rank": 16,
            "decay_rank": 32,
        },
        "base": {"d_model": 256, "n_layers": 5, "d_ffn": 768},
        "large": {"d_model": 512, "n_layers": 8, "d_ffn": 1536},
    }

    def __post_init__(self) -> None:
        sizes = (self.d_model, self.n_layers, self.head_size, self.d_ffn)
        self.require(min(*sizes, self.mix_rank, self.decay_rank) >= 1, "sizes must be positive")
        self.require(self.d_model % self.head_size == 0, "d_model must be a multiple of head_size")


class LayerNorm(nn.LayerNorm):
    """A layer norm that stays finite for every finite token: entries are cut."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name nn.LayerNorm gave it)
        return super().forward(input.clamp(-BOUND, BOUND))


class TimeMix(nn.Module):
    """Mixes tokens over time: r, k, v, gate and decay of each token feed the WKV recurrence."""

    def __init__(self, config: RWKV6Config, index: int) -> None:
        super().__init__()
        width, size = config.d_model, config.head_size
        self.head_size = size
        self.head_eps = config.head_eps
        self.mix_input = nn.Parameter(torch.empty(width))
        self.mix = nn.Parameter(torch.empty(_STREAMS, width))
        self.mix_down = init_linear(width, _STREAMS * config.mix_rank, std=0.1 * width**-0.5)
        self.mix_up = nn.Parameter(torch.randn(_STREAMS, config.mix_rank, width) * 0.01)
        self.decay = nn.Parameter(torch.empty(width))
        self.decay_down = init_linear(width, config.decay_rank, std=0.1 * width**-0.5)
        self.decay_up = init_linear(config.decay_rank, width, std=0.01)
        self.bonus = nn.Parameter(torch.empty(width // size, size))
        self.receptance = init_linear(width, width)
        self.key = init_linear(width, width)
        self.value = init_linear(width, width)
        self.gate = init_linear(width, width)
        self.head_weight = nn.Parameter(torch.ones(width))
        self.head_bias = nn.Parameter(torch.zeros(width))
        self.output = init_linear(width, width, std=(config.n_layers * width) ** -0.5)
        _init_time_mix(self, index, config.n_layers)

    def forward(
        self, x: Tensor, before: Tensor, state: Tensor, lengths: Tensor | None, dt: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Mixed tokens [B, T, d_model] and the next state [B, H, K, V]; ``before`` [B, d_model]."""
        delta = previous_tokens(x, before) - x
        mixed = (x + delta * self.mix_input).to(x.dtype)
        r, k, v, raw_rate, gate = self._project(x, delta, mixed)
        log_decay = self._log_decay(raw_rate, dt)
        y, new_state = wkv6(r, k, v, log_decay, self.bonus, state, lengths)
        return self._read(y, gate), new_state

    def step_(self, token: _Shifted, states: Tensor, slots: Tensor, dt: Tensor | None) -> Tensor:
        """One token a row [N, d_model]; the arena rows ``slots`` of ``states`` change in place."""
        normed, delta, mixed = token
        r, k, v, raw_rate, gate = self._project(normed, delta, mixed[0])
        if runs_triton(states):
            kernel = importlib.import_module("kssm.ops.wkv6.kernel_step")
            norm = (self.head_weight, self.head_bias, self.head_eps)
            base = self.decay.view_as(self.bonus)
            gating = kernel.Gating(base, dt, *norm, gate, _MAX_LOG_RATE, _MAX_DECAY)
            step = outside_graph(kernel.wkv6_gated_step_triton_)
            y = step(r, k, v, raw_rate, self.bonus, gating, states, slots)
            return self.output(y.to(gate.dtype))
        y = wkv6_step_(r, k, v, self._log_decay(raw_rate, dt), self.bonus, states, slots)
        return self._read(y, gate)

    def _project(
        self, x: Tensor, delta: Tensor, mixed: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """r, k, v and raw rate [..., H, head_size] and the gate [..., d_model] of tokens x.

        ``delta`` is what the token before has more, ``mixed`` the mixture that sets the others.
        """
        low = self.mix_down(mixed).tanh().unflatten(-1, (_STREAMS, -1))
        low = low.flatten(0, -3).transpose(0, 1)  # [streams, tokens, rank]
        mix = torch.baddbmm(self.mix.unsqueeze(1).to(low.dtype), low, self.mix_up.to(low.dtype))
        mix = mix.view(_STREAMS, *x.shape).to(x.dtype)
        x_decay, x_key, x_value, x_receptance, x_gate = torch.addcmul(x, delta, mix).unbind(0)
        heads = (-1, self.head_size)
        r = self.receptance(x_receptance).unflatten(-1, heads)
        k, v = self.key(x_key).unflatten(-1, heads), self.value(x_value).unflatten(-1, heads)
        raw_rate = self.decay_up(self.decay_down(x_decay).tanh()).unflatten(-1, heads)
        return r, k, v, raw_rate, self.gate(x_gate)

    def _log_decay(self, raw_rate: Tensor, dt: Tensor | None) -> Tensor:
        """Logarithm of each channel's decay over the time of the token, in at least fp32."""
        log_rate = self.decay.to(state_dtype(self.decay.dtype)).view_as(self.bonus) + raw_rate
        rate = log_rate.clamp(max=_MAX_LOG_RATE).exp()
        if dt is not None:
            rate = rate * dt[..., None, None].to(rate.dtype)
        return -rate.clamp(max=_MAX_DECAY)

    def _read(self, y: Tensor, gate: Tensor) -> Tensor:
        """Norm of each head, gate and output projection, [..., d_model]."""
        normed = F.layer_norm(y, y.shape[-1:], eps=self.head_eps).flatten(-2)
        normed = torch.addcmul(self.head_bias, normed, self.head_weight)
        return self.output((normed * F.silu(gate)).to(gate.dtype))


class ChannelMix(nn.Module):
    """Gated feed-forward layer with squared ReLU on tokens mixed with their predecessor."""

    def __init__(self, config: RWKV6Config, index: int) -> None:
        super().__init__()
        width, hidden = config.d_model, config.d_ffn
        place = torch.arange(width) / width
        self.mix_key = nn.Parameter(1 - place ** (1 - index / config.n_layers))
        self.mix_receptance = nn.Parameter(1 - place ** (1 - index / config.n_layers))
        self.key = init_linear(width, hidden)
        self.receptance = init_linear(width, width)
        self.value = init_linear(hidden, width, std=(config.n_layers * hidden) ** -0.5)

    def forward(self, x: Tensor, previous: Tensor) -> Tensor:
        """Tokens x [..., d_model], each with the one before it."""
        delta = previous - x
        for_key = (x + delta * self.mix_key).to(x.dtype)
        return self.read(for_key, (x + delta * self.mix_receptance).to(x.dtype))

    def read(self, for_key: Tensor, for_receptance: Tensor) -> Tensor:
        """The layer's output from the two mixtures [..., d_model]."""
        hidden = F.relu(self.key(for_key)).square()
        return self.receptance(for_receptance).sigmoid() * self.value(hidden)


class RWKV6Block(Block):
    """Time mix and channel mix, each behind a layer norm and added to the residual stream.

    State: the normalised last token of each mix ("time_shift", "channel_shift" [d_model]) and the
    WKV state ("state" [heads, head_size, head_size]).
    """

    def __init__(self, config: RWKV6Config, index: int) -> None:
        super().__init__()
        width = config.d_model
        first = config.input_norm and index == 0
        self.input_norm = LayerNorm(width, config.norm_eps) if first else nn.Identity()
        self.time_norm = LayerNorm(width, config.norm_eps)
        self.time = TimeMix(config, index)
        self.channel_norm = LayerNorm(width, config.norm_eps)
        self.channel = ChannelMix(config, index)

    def state_spec(self) -> StateSpec:
        heads, size = self.time.bonus.shape
        dtype = state_dtype(self.time.bonus.dtype)
        return {
            "time_shift": ((heads * size,), dtype),
            "channel_shift": ((heads * size,), dtype),
            "state": ((heads, size, size), dtype),
        }

    def forward(
        self, x: Tensor, state: State | None, lengths: Tensor | None, dt: Tensor | None
    ) -> tuple[Tensor, State]:
        if state is None:
            state = fresh_state(self.state_spec(), len(x), x.device)
        dtype = compute_dtype(x)
        x = self.input_norm(x)
        normed = self.time_norm(x).to(dtype)
        time_shift = last_valid(normed, state["time_shift"], lengths)
        y, wkv_state = self.time(normed, state["time_shift"], state["state"], lengths, dt)
        x = x + y
        normed = self.channel_norm(x).to(dtype)
        channel_shift = last_valid(normed, state["channel_shift"], lengths)
        x = x + self.channel(normed, previous_tokens(normed, state["channel_shift"]))
        new_state = {"time_shift": time_shift, "channel_shift": channel_shift, "state": wkv_state}
        return x, new_state

    def step_(self, x: Tensor, arena: State, slots: Tensor, dt: Tensor | None) -> Tensor:
        x = self.input_norm(x)
        mix = self.time.mix_input.unsqueeze(0)
        token = _shift_(x, self.time_norm, mix, arena["time_shift"], slots)
        x = x + self.time.step_(token, arena["state"], slots, dt)
        mix = torch.stack([self.channel.mix_key, self.channel.mix_receptance])
        _, _, mixed = _shift_(x, self.channel_norm, mix, arena["channel_shift"], slots)
        return x + self.channel.read(mixed[0], mixed[1])


def _shift_(x: Tensor, norm: LayerNorm, mix: Tensor, shifts: Tensor, slots: Tensor) -> _Shifted:
    """One token a row, normalised and mixed with the one before, which it replaces."""
    return shift_step_(x, norm.weight, norm.bias, norm.eps, mix, shifts, slots)


class RWKV6(Stack):
    """A stack of RWKV-6 blocks with a final layer norm."""

    def __init__(self, config: RWKV6Config, *, gradient_checkpointing: bool = False) -> None:
        blocks = [RWKV6Block(config, index) for index in range(config.n_layers)]
        norm = LayerNorm(config.d_model, config.norm_eps)
        super().__init__(
            config.d_model, blocks, norm, gradient_checkpointing=gradient_checkpointing
        )
        self.config = config


@torch.no_grad()
def _init_time_mix(layer: TimeMix, index: int, n_layers: int) -> None:
    """The authors' initialisation: deeper blocks look back less and keep longer memories.

    Decay rates run from exp(-6) to exp(-1) a token over the channels.
    """
    width = layer.decay.shape[0]
    depth, rest = index / max(n_layers - 1, 1), 1 - index / n_layers
    place = torch.arange(width) / width
    spread = torch.arange(width) / max(width - 1, 1)
    share = 1 - place**rest
    keen = 1 - place ** (0.5 * rest)
    layer.mix_input.copy_(share)
    layer.mix.copy_(torch.stack([share, share, share - 0.3 * depth, keen, keen]))
    layer.decay.copy_(-6 + 5 * spread ** (0.7 + 1.3 * depth))
    zigzag = 0.1 * ((torch.arange(width) + 1) % 3 - 1)
    layer.bonus.copy_((depth * (1 - spread) + zigzag).view_as(layer.bonus))
