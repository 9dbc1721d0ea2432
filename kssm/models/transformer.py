"""A Transformer whose memory is bounded: sliding-window attention with rotary positions.

The blocks are those of Llama and Mistral: RMS norm, grouped-query attention with rotary position
embedding (Su et al., "RoFormer", 2021; Ainslie et al., "GQA", 2023), SwiGLU. Positions are real:
a token's position is its predecessor's plus ``dt``.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kssm.models.base import State, StateSpec, fresh_state
from kssm.models.layers import RMSNorm, SwiGLU, init_linear
from kssm.models.stack import Block, Stack, StackConfig, compute_dtype, state_dtype
from kssm.models.tokens import last_valid
from kssm.models.window import (
    advanced,
    attend,
    attend_after,
    attend_ring,
    ring_after,
    ring_in_order,
    seen,
)
from kssm.ops.eager import outside_graph
from kssm.ops.launch import runs_triton


@dataclass(frozen=True)
class TransformerConfig(StackConfig):
    """Sizes of a Transformer.

    Attributes:
        n_heads: query heads.
        n_kv_heads: key and value heads, each read by n_heads / n_kv_heads query heads.
        head_size: channels of a head.
        d_mlp: hidden width of the feed-forward layer.
        window: tokens that a token sees, itself included; what a row remembers.
        rope_theta: base of the rotary frequencies.
        qkv_bias: biases on the query, key and value projections.
        norm_eps: epsilon of the norms.
    """

    d_model: int = 256
    n_layers: int = 6
    n_heads: int = 4
    n_kv_heads: int = 2
    head_size: int = 64
    d_mlp: int = 704
    window: int = 256
    rope_theta: float = 10_000.0
    qkv_bias: bool = False
    norm_eps: float = 1e-6

    presets: ClassVar[Mapping[str, Mapping[str, int]]] = {
        "tiny": {"d_model": 48, "n_layers": 3, "head_size": 12, "d_mlp": 112},
        "small": {"d_model": 128, "n_layers": 3, "head_size": 32, "d_mlp": 352},
        "base": {"d_model": 256, "n_layers": 6, "d_mlp": 704},
        "large": {
            "d_model": 512,
            "n_layers": 9,
            "n_heads": 8,
            "n_kv_heads": 4,
            "d_mlp": 1408,
        },
    }

    def __post_init__(self) -> None:
        sizes = (self.d_model, self.n_layers, self.n_heads, self.n_kv_heads, self.d_mlp)
        self.require(min(*sizes, self.head_size, self.window) >= 1, "sizes must be positive")
        self.require(
            self.n_heads % self.n_kv_heads == 0, "n_heads must be a multiple of n_kv_heads"
        )
        self.require(self.head_size % 2 == 0, "head_size must be even")
        self.require(self.rope_theta > 1, "rope_theta must exceed 1")


class TransformerBlock(Block):
    """Attention and feed-forward layer, each behind an RMS norm and added to the residual stream.

    State: "keys" (rotated) and "values" of the last ``window`` tokens as rings
    [window, n_kv_heads, head_size], "count" [1] of the tokens seen (see ``window``), and "phase"
    [head_size / 2]: the last token's position on the circle of each rotary frequency, in turns
    (-1/2 ... 1/2), which loses no precision however long a row lives.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, size = config.d_model, config.head_size
        self.config = config
        self.heads = (config.n_heads, config.n_kv_heads, config.n_kv_heads)
        out_scale = config.n_layers**-0.5
        inner = config.n_heads * size
        self.attention_norm = RMSNorm(width, eps=config.norm_eps)
        self.qkv = init_linear(width, sum(self.heads) * size, bias=config.qkv_bias)
        self.output = init_linear(inner, width, std=out_scale * inner**-0.5)
        self.mlp_norm = RMSNorm(width, eps=config.norm_eps)
        self.mlp = SwiGLU(width, config.d_mlp, out_scale)

    def state_spec(self) -> StateSpec:
        config = self.config
        dtype = state_dtype(self.qkv.weight.dtype)
        ring = (config.window, config.n_kv_heads, config.head_size)
        return {
            "keys": (ring, dtype),
            "values": (ring, dtype),
            "count": ((1,), dtype),
            "phase": ((config.head_size // 2,), dtype),
        }

    def forward(
        self, x: Tensor, state: State | None, lengths: Tensor | None, dt: Tensor | None
    ) -> tuple[Tensor, State]:
        window = self.config.window
        q, k, v = self._project(x)
        old = fresh_state(self.state_spec(), len(x), x.device) if state is None else state
        phases = self._phases(old["phase"], x, dt)
        q, k = rotate(q, phases), rotate(k, phases)
        count = seen(old["count"], window)
        if state is None:
            y = attend(q, _finite(k), _finite(v), window)
        else:
            past_k = _finite(ring_in_order(state["keys"], count))
            past_v = _finite(ring_in_order(state["values"], count))
            filled = count.clamp_max(window)
            y = attend_after(q, _finite(k), _finite(v), past_k, past_v, filled)
        tokens = x.shape[1] if lengths is None else lengths.unsqueeze(1)
        new_state = {
            "keys": ring_after(old["keys"], k, count, lengths),
            "values": ring_after(old["values"], v, count, lengths),
            "count": advanced(old["count"], tokens, window),
            "phase": last_valid(phases, old["phase"], lengths),
        }
        return self._finish(x, y), new_state

    def step_(self, x: Tensor, arena: State, slots: Tensor, dt: Tensor | None) -> Tensor:
        if runs_triton(arena["keys"]):
            return self._finish(x, self._step_triton_(x, arena, slots, dt).to(compute_dtype(x)))
        window = self.config.window
        q, k, v = self._project(x)
        step = None if dt is None else dt.unsqueeze(1)
        old_phase, old_count = arena["phase"][slots], arena["count"][slots]
        phase = self._phases(old_phase, x.unsqueeze(1), step).squeeze(1)
        q, k = rotate(q, phase), rotate(k, phase)
        count = seen(old_count, window)
        healthy = torch.isfinite(k).flatten(1).all(1) & torch.isfinite(v).flatten(1).all(1)
        place = (slots, count % window)
        for name, token in (("keys", k), ("values", v)):
            ring = arena[name]
            ring[place] = torch.where(healthy[:, None, None], token.to(ring.dtype), ring[place])
        healthy = healthy.unsqueeze(1)
        arena["phase"][slots] = torch.where(healthy, phase, old_phase)
        arena["count"][slots] = torch.where(healthy, advanced(old_count, 1, window), old_count)
        keys, values = (arena[name].index_select(0, slots) for name in ("keys", "values"))
        y = attend_ring(q, keys, values, (count + 1).clamp_max(window))
        return self._finish(x, y)

    def _step_triton_(self, x: Tensor, arena: State, slots: Tensor, dt: Tensor | None) -> Tensor:
        """What the heads read [N, n_heads, head_size], by one kernel."""
        packed = self.qkv(self.attention_norm(x).to(compute_dtype(x)))
        rings = (arena["keys"], arena["values"], arena["count"], arena["phase"])
        kernel = importlib.import_module("kssm.ops.ring_step")
        step = outside_graph(kernel.ring_step_triton_)
        return step(packed, *rings, slots, dt, self.config.rope_theta)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [..., heads, head_size] of tokens x [..., d_model]."""
        packed = self.qkv(self.attention_norm(x).to(compute_dtype(x)))
        q, k, v = packed.unflatten(-1, (-1, self.config.head_size)).split(self.heads, dim=-2)
        return q, k, v

    def _finish(self, x: Tensor, y: Tensor) -> Tensor:
        """Output projection and feed-forward layer around the residual stream."""
        x = x + self.output(y.flatten(-2))
        return x + self.mlp(self.mlp_norm(x).to(compute_dtype(x)))

    def _phases(self, start: Tensor, x: Tensor, dt: Tensor | None) -> Tensor:
        """The phase of each token [B, T, head_size / 2] after ``start``, in its dtype."""
        steps = torch.ones(x.shape[:2], dtype=torch.float64, device=x.device) if dt is None else dt
        frequencies = rotary_frequencies(self.config.head_size, self.config.rope_theta, x.device)
        forward = _wrapped(steps.to(torch.float64).unsqueeze(-1) * frequencies)
        turns = start.to(torch.float64).unsqueeze(1) + forward.cumsum(1)
        return _wrapped(turns).to(start.dtype)


class Transformer(Stack):
    """A stack of Transformer blocks with a final RMS norm."""

    def __init__(self, config: TransformerConfig, *, gradient_checkpointing: bool = False) -> None:
        blocks = [TransformerBlock(config) for _ in range(config.n_layers)]
        norm = RMSNorm(config.d_model, eps=config.norm_eps)
        super().__init__(
            config.d_model, blocks, norm, gradient_checkpointing=gradient_checkpointing
        )
        self.config = config


def rotary_frequencies(head_size: int, theta: float, device: torch.device) -> Tensor:
    """Turns per unit of position of each pair of channels, [head_size / 2] fp64."""
    pairs = torch.arange(0, head_size, 2, dtype=torch.float64, device=device)
    return theta ** (-pairs / head_size) / (2 * math.pi)


def _wrapped(turns: Tensor) -> Tensor:
    """The same angles within half a turn."""
    return turns - turns.round()


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate x [..., heads, D] by ``turns`` [..., D / 2]; channel i pairs with i + D / 2."""
    angle = (turns * (2 * math.pi)).unsqueeze(-2)
    cos, sin = angle.cos(), angle.sin()
    first, second = x.chunk(2, dim=-1)
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return rotated.to(x.dtype)


def _finite(x: Tensor) -> Tensor:
    """Zeros for what is not finite: a masked key would still spread its NaN."""
    return torch.where(torch.isfinite(x), x, 0.0)
