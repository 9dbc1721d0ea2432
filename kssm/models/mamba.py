"""Mamba: a selective diagonal state space behind a causal convolution, with a gate.

Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023.
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
from kssm.ops.selective_scan import selective_scan, selective_step_


@dataclass(frozen=True)
class MambaConfig(StackConfig):
    """Sizes of a Mamba stack.

    Attributes:
        d_inner: channels of the recurrence.
        d_state: real states a channel.
        rank: rank of the map from a token to the steps.
        conv_width: taps of the causal convolution.
        norm_eps: epsilon of the RMS norms.
    """

    d_model: int = 256
    n_layers: int = 10
    d_inner: int = 512
    d_state: int = 16
    rank: int = 16
    conv_width: int = 4
    norm_eps: float = 1e-5

    presets: ClassVar[Mapping[str, Mapping[str, int]]] = {
        "tiny": {"d_model": 64, "n_layers": 2, "d_inner": 128, "rank": 4},
        "small": {"d_model": 128, "n_layers": 5, "d_inner": 256, "rank": 8},
        "base": {"d_model": 256, "n_layers": 10, "d_inner": 512, "rank": 16},
        "large": {"d_model": 512, "n_layers": 16, "d_inner": 1024, "rank": 32},
    }

    def __post_init__(self) -> None:
        sizes = (self.d_model, self.n_layers, self.d_inner, self.d_state, self.rank)
        self.require(min(sizes) >= 1, "sizes must be positive")
        self.require(self.conv_width >= 2, "conv_width must be at least 2")


class MambaBlock(Block):
    """RMSNorm -> (x, gate) -> causal conv -> selective scan -> gate -> projection."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        inner, states = config.d_inner, config.d_state
        self.config = config
        self.norm = RMSNorm(config.d_model, eps=config.norm_eps)
        self.in_proj = init_linear(config.d_model, 2 * inner)
        self.conv = CausalConv(inner, config.conv_width)
        self.select = init_linear(inner, config.rank + 2 * states)
        self.dt_up = init_linear(config.rank, inner, std=(3 * config.rank) ** -0.5)
        self.dt_bias = nn.Parameter(log_uniform_step_bias(inner))
        decay = torch.arange(1, states + 1, dtype=torch.float32)  # S4D-real
        self.a_log = nn.Parameter(decay.log().repeat(inner, 1))
        self.skip = nn.Parameter(torch.ones(inner))
        self.out_proj = init_linear(inner, config.d_model, (config.n_layers * inner) ** -0.5)

    def state_spec(self) -> StateSpec:
        config, dtype = self.config, state_dtype(self.a_log.dtype)
        return {
            "window": ((config.conv_width - 1, config.d_inner), dtype),
            "state": ((config.d_inner, config.d_state), dtype),
        }

    def forward(
        self, x: Tensor, state: State | None, lengths: Tensor | None, dt: Tensor | None
    ) -> tuple[Tensor, State]:
        wide = state_dtype(self.a_log.dtype)
        inputs, gate = self._split(x)
        old_window = None if state is None else state["window"]
        filtered = self.conv(inputs, old_window)
        active = F.silu(filtered)
        raw, b, c = self._selection(active, compute_dtype(x))
        step = token_steps(F.softplus(raw.to(wide) + self.dt_bias), dt, lengths)
        b, c = b.to(wide), c.to(wide)
        if state is None:
            before = active.new_zeros(len(x), *self.a_log.shape, dtype=wide)
        else:
            before = state["state"].to(wide)
        a = -torch.exp(self.a_log.to(wide))
        y, after = selective_scan(active.to(wide), step, a, b, c, before)
        window = self.conv.last_window(inputs, old_window, lengths).to(wide)
        return self._join(x, y, active, gate), {"window": window, "state": after}

    def step_(self, x: Tensor, arena: State, slots: Tensor, dt: Tensor | None) -> Tensor:
        inputs, gate = self._split(x)
        active = self.conv.step_(inputs, arena["window"], slots, silu=True)
        raw, b, c = self._selection(active, compute_dtype(x))
        mixed = selective_step_(
            active,
            raw,
            self.dt_bias,
            self.a_log,
            b,
            c,
            self.skip,
            gate,
            arena["state"],
            slots,
            dt,
        )
        return x + self.out_proj(mixed.to(compute_dtype(x)))

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        """What enters the convolution, and the gate: [..., d_inner] twice."""
        return self.in_proj(self.norm(x).to(compute_dtype(x))).chunk(2, dim=-1)

    def _selection(self, active: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Raw steps [..., d_inner], B and C [..., d_state] in ``dtype``."""
        states = self.config.d_state
        low = self.select(active.to(dtype))
        low, b, c = low.split([self.config.rank, states, states], dim=-1)
        return self.dt_up(low), b, c

    def _join(self, x: Tensor, y: Tensor, active: Tensor, gate: Tensor) -> Tensor:
        """Skip, gate and projection around the residual stream."""
        mixed = (y + self.skip * active) * F.silu(gate)
        return x + self.out_proj(mixed.to(compute_dtype(x)))


class Mamba(Stack):
    """A stack of Mamba blocks with a final norm."""

    def __init__(self, config: MambaConfig, *, gradient_checkpointing: bool = False) -> None:
        super().__init__(
            config.d_model,
            [MambaBlock(config) for _ in range(config.n_layers)],
            RMSNorm(config.d_model, eps=config.norm_eps),
            gradient_checkpointing=gradient_checkpointing,
        )
        self.config = config
