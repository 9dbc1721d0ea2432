"""Mamba-2: heads with one decay each, computed as chunked matrix products.

Source: Dao and Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through
Structured State Space Duality", 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kssm.models.base import State, StateSpec
from kssm.models.layers import CausalConv, RMSNorm, init_linear
from kssm.models.selective import log_uniform_step_bias, token_steps
from kssm.models.stack import Block, Stack, StackConfig, compute_dtype, state_dtype
from kssm.ops.ssd import ssd_scan, ssd_step_


@dataclass(frozen=True)
class Mamba2Config(StackConfig):
    """Sizes of a Mamba-2 stack.

    Attributes:
        d_inner: channels of the recurrence.
        head_dim: channels a head (P).
        d_state: states a channel (N).
        groups: groups of heads that share B and C, and a group of the gated norm.
        conv_width: taps of the causal convolution over x, B and C.
        norm_eps: epsilon of the RMS norms.
    """

    d_model: int = 256
    n_layers: int = 10
    d_inner: int = 512
    head_dim: int = 64
    d_state: int = 64
    groups: int = 1
    conv_width: int = 4
    norm_eps: float = 1e-5

    presets: ClassVar[Mapping[str, Mapping[str, int]]] = {
        "tiny": {"d_model": 64, "n_layers": 2, "d_inner": 128, "head_dim": 32, "d_state": 32},
        "small": {"d_model": 128, "n_layers": 5, "d_inner": 256, "head_dim": 32},
        "base": {"d_model": 256, "n_layers": 10, "d_inner": 512},
        "large": {"d_model": 512, "n_layers": 16, "d_inner": 1024, "d_state": 128},
    }

    def __post_init__(self) -> None:
        sizes = (self.d_model, self.n_layers, self.d_inner, self.head_dim, self.d_state)
        self.require(min(*sizes, self.groups) >= 1, "sizes must be positive")
        self.require(self.conv_width >= 2, "conv_width must be at least 2")
        self.require(self.d_inner % self.head_dim == 0, "d_inner must be a multiple of head_dim")
        self.require(self.heads % self.groups == 0, "the heads must divide into groups")

    @property
    def heads(self) -> int:
        return self.d_inner // self.head_dim


class Mamba2Block(Block):
    """RMSNorm -> (gate, xBC, dt) -> causal conv -> SSD -> gated norm -> projection."""

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__()
        inner, heads = config.d_inner, config.heads
        self.config = config
        self.filtered = inner + 2 * config.groups * config.d_state
        self.norm = RMSNorm(config.d_model, eps=config.norm_eps)
        self.in_proj = init_linear(config.d_model, inner + self.filtered + heads)
        self.conv = CausalConv(self.filtered, config.conv_width)
        self.dt_bias = nn.Parameter(log_uniform_step_bias(heads))
        self.a_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.skip = nn.Parameter(torch.ones(heads))
        self.out_norm = RMSNorm(inner, inner // config.groups, config.norm_eps)
        self.out_proj = init_linear(inner, config.d_model, (config.n_layers * inner) ** -0.5)

    def state_spec(self) -> StateSpec:
        config, dtype = self.config, state_dtype(self.a_log.dtype)
        return {
            "window": ((config.conv_width - 1, self.filtered), dtype),
            "state": ((config.heads, config.head_dim, config.d_state), dtype),
        }

    def forward(
        self, x: Tensor, state: State | None, lengths: Tensor | None, dt: Tensor | None
    ) -> tuple[Tensor, State]:
        wide = state_dtype(self.a_log.dtype)
        gate, inputs, raw = self._split(x)
        old_window = None if state is None else state["window"]
        filtered = self.conv(inputs, old_window)
        heads, b, c = self._selection(F.silu(filtered).to(wide))
        step = token_steps(F.softplus(raw.to(wide) + self.dt_bias), dt, lengths)
        if state is None:
            before = heads.new_zeros(len(x), *heads.shape[2:], self.config.d_state)
        else:
            before = state["state"].to(wide)
        y, after = ssd_scan(heads, step, -torch.exp(self.a_log.to(wide)), b, c, before)
        window = self.conv.last_window(inputs, old_window, lengths).to(wide)
        return self._join(x, y, heads, gate), {"window": window, "state": after}

    def step_(self, x: Tensor, arena: State, slots: Tensor, dt: Tensor | None) -> Tensor:
        gate, inputs, raw = self._split(x)
        active = self.conv.step_(inputs, arena["window"], slots, silu=True)
        heads, b, c = self._selection(active)
        mixed = ssd_step_(
            heads,
            raw,
            self.dt_bias,
            self.a_log,
            b,
            c,
            self.skip,
            gate.unflatten(-1, heads.shape[-2:]),
            arena["state"],
            slots,
            dt,
        )
        return x + self.out_proj(self.out_norm(mixed.flatten(-2)).to(compute_dtype(x)))

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gate [..., d_inner], what enters the convolution, and the raw steps [..., heads]."""
        config = self.config
        projected = self.in_proj(self.norm(x).to(compute_dtype(x)))
        sizes = [config.d_inner, self.filtered, config.heads]
        gate, inputs, raw = projected.split(sizes, dim=-1)
        return gate, inputs, raw

    def _selection(self, active: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [..., heads, head_dim], B and C [..., groups, d_state] of the filtered tokens."""
        config = self.config
        shared = config.groups * config.d_state
        x, b, c = active.split([config.d_inner, shared, shared], dim=-1)
        x = x.unflatten(-1, (config.heads, config.head_dim))
        shape = (config.groups, config.d_state)
        return x, b.unflatten(-1, shape), c.unflatten(-1, shape)

    def _join(self, x: Tensor, y: Tensor, heads: Tensor, gate: Tensor) -> Tensor:
        """Skip, gated norm and projection around the residual stream."""
        mixed = (y + self.skip.unsqueeze(-1) * heads).flatten(-2)
        normed = self.out_norm(mixed * F.silu(gate.to(mixed.dtype)))
        return x + self.out_proj(normed.to(compute_dtype(x)))


class Mamba2(Stack):
    """A stack of Mamba-2 blocks with a final norm."""

    def __init__(self, config: Mamba2Config, *, gradient_checkpointing: bool = False) -> None:
        super().__init__(
            config.d_model,
            [Mamba2Block(config) for _ in range(config.n_layers)],
            RMSNorm(config.d_model, eps=config.norm_eps),
            gradient_checkpointing=gradient_checkpointing,
        )
        self.config = config
