"""KSSM with matrix states: heads that remember P values at each of N damped rotations.

Where ``kssm`` keeps one rotation a channel, a head here keeps P values for N of them and looks
them up by content, as linear attention does: for recall, at the price of a larger state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from kssm.errors import InvalidInputError
from kssm.models.base import State, StateSpec
from kssm.models.layers import CausalConv, RMSNorm, SwiGLU, fed_forward, init_linear
from kssm.models.stack import Block, Stack, StackConfig, compute_dtype, state_dtype
from kssm.ops.joint import Place, split
from kssm.ops.matrix_scan import MatrixParameters, matrix_scan, matrix_step_

_SMALL = {"head_dim": 32, "pairs": 32}


@dataclass(frozen=True)
class KSSMMatrixConfig(StackConfig):
    """Sizes of a matrix-state KSSM stack.

    Attributes:
        d_inner: values of all heads.
        head_dim: values a head (P).
        pairs: damped rotations a head (N).
        groups: groups of heads that share B, C and the rotations' frequencies.
        d_mlp: hidden width of the feed-forward layer, 0 = none.
        conv_width: taps of the causal convolution over x, B and C.
    """

    d_model: int = 256
    n_layers: int = 8
    d_inner: int = 384
    head_dim: int = 64
    pairs: int = 32
    groups: int = 1
    d_mlp: int = 256
    conv_width: int = 4

    presets: ClassVar[Mapping[str, Mapping[str, int]]] = {
        "tiny": dict(_SMALL, d_model=64, n_layers=2, d_inner=96, pairs=16, d_mlp=48),
        "small": dict(_SMALL, d_model=128, n_layers=4, d_inner=192, d_mlp=128),
        "base": {},
        "large": {"d_model": 512, "n_layers": 12, "d_inner": 768, "pairs": 64, "d_mlp": 576},
    }

    def __post_init__(self) -> None:
        sizes = (self.d_model, self.n_layers, self.d_inner, self.head_dim, self.pairs)
        self.require(min(*sizes, self.groups) >= 1, "sizes must be positive")
        self.require(self.d_mlp >= 0, "d_mlp must not be negative")
        self.require(self.conv_width >= 2, "conv_width must be at least 2")
        self.require(self.d_inner % self.head_dim == 0, "d_inner must be a multiple of head_dim")
        self.require(self.heads % self.groups == 0, "the heads must divide into groups")

    @property
    def heads(self) -> int:
        return self.d_inner // self.head_dim


class KSSMMatrixBlock(Block):
    """RMSNorm -> (gate, x, B, C, gates) -> causal conv -> matrix scan -> gate -> feed-forward."""

    recurrent: ClassVar[frozenset[str]] = frozenset({"alpha_bias", "dt_bias", "rate"})

    def __init__(self, config: KSSMMatrixConfig) -> None:
        super().__init__()
        inner, heads, shared = config.d_inner, config.heads, config.groups * config.pairs
        self.config = config
        self.filtered = inner + 4 * shared
        self.sizes = [inner, self.filtered, heads, heads, shared]
        self.pieces = [inner, 2 * shared, 2 * shared]
        out_scale = config.n_layers**-0.5
        self.norm = RMSNorm(config.d_model)
        self.in_proj = init_linear(config.d_model, sum(self.sizes))
        self.conv = CausalConv(self.filtered, config.conv_width)
        self.alpha_bias = nn.Parameter(torch.empty(heads))
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.rate = nn.Parameter(torch.empty(config.groups, config.pairs))
        self.skip = nn.Parameter(torch.ones(inner))
        self.out_norm = RMSNorm(inner, config.head_dim)
        self.out_proj = init_linear(inner, config.d_model, std=out_scale * inner**-0.5)
        self.mlp_norm = RMSNorm(config.d_model) if config.d_mlp else None
        self.mlp = SwiGLU(config.d_model, config.d_mlp, out_scale) if config.d_mlp else None
        with torch.no_grad():
            self.in_proj.weight[-(2 * heads + shared) :] *= 0.1
        spread_memory(self)

    def scan_parameters(self) -> MatrixParameters:
        """The scan's own parameters, in fp32 (fp64) whatever the weights' dtype."""
        wide = state_dtype(self.dt_bias.dtype)
        return MatrixParameters(*(p.to(wide) for p in (self.alpha_bias, self.dt_bias, self.rate)))

    def state_spec(self) -> StateSpec:
        config, dtype = self.config, state_dtype(self.norm.weight.dtype)
        return {
            "window": ((config.conv_width - 1, self.filtered), dtype),
            "state": ((config.heads, config.head_dim, config.pairs, 2), dtype),
        }

    def forward(
        self, x: Tensor, state: State | None, lengths: Tensor | None, dt: Tensor | None
    ) -> tuple[Tensor, State]:
        old_window = None if state is None else state["window"]
        normed, x = self.norm.beside(x, compute_dtype(x))
        (gate, inputs, *gates), places = split(self.in_proj(normed), self.sizes)
        values, skipped, b, c = self.conv.activated(inputs, old_window, self.pieces, places[1])
        y, new_state = matrix_scan(
            *self._shaped(values, b, c),
            *self._gates(gates),
            self.scan_parameters(),
            token_dt=dt,
            initial_state=None if state is None else state["state"],
            lengths=lengths,
        )
        window = self.conv.last_window(inputs, old_window, lengths).to(new_state.dtype)
        return self._join(x, y, skipped, gate, places[0]), {"window": window, "state": new_state}

    def step_(self, x: Tensor, arena: State, slots: Tensor, dt: Tensor | None) -> Tensor:
        normed = self.norm(x).to(compute_dtype(x))
        gate, inputs, *gates = self.in_proj(normed).split(self.sizes, dim=-1)
        active = self.conv.step_(inputs, arena["window"], slots, silu=True)
        values, b, c = active.to(compute_dtype(x)).split(self.pieces, dim=-1)
        y = matrix_step_(
            *self._shaped(values, b, c),
            *self._gates(gates),
            self.scan_parameters(),
            arena["state"],
            slots,
            token_dt=dt,
        )
        return self._join(x, y, values, gate)

    def _shaped(self, x: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [..., heads, head_dim], B and C [..., groups, 2 pairs]."""
        config = self.config
        shape = (config.groups, 2 * config.pairs)
        x = x.unflatten(-1, (config.heads, config.head_dim))
        return x, b.unflatten(-1, shape), c.unflatten(-1, shape)

    def _gates(self, raw: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        alpha, dt, omega = raw
        return alpha, dt, omega.unflatten(-1, (self.config.groups, self.config.pairs))

    def _join(
        self,
        residual: Tensor,
        y: Tensor,
        skipped: Tensor,
        gate: Tensor,
        place: Place | None = None,
    ) -> Tensor:
        """Norm of each head, skip, gate and feed-forward around the residual stream."""
        dtype = compute_dtype(residual)
        y = self.out_norm.gated(y.flatten(-2), skipped, self.skip, gate, dtype, place)
        y = self.out_proj(y)
        return fed_forward(residual, y, self.mlp_norm, self.mlp, dtype)


class KSSMMatrix(Stack):
    """A stack of matrix-state KSSM blocks with a final norm."""

    def __init__(self, config: KSSMMatrixConfig, *, gradient_checkpointing: bool = False) -> None:
        super().__init__(
            config.d_model,
            [KSSMMatrixBlock(config) for _ in range(config.n_layers)],
            RMSNorm(config.d_model),
            gradient_checkpointing=gradient_checkpointing,
        )
        self.config = config


@torch.no_grad()
def spread_memory(
    layer: KSSMMatrixBlock,
    long_memory: float = 1500.0,
    freq_min: float = 1 / 3000,
    freq_max: float = 1 / 2.1,
    still_share: float = 0.12,
) -> None:
    """Spread the heads over time constants and the pairs over frequencies.

    Time constants are even on a logarithmic scale from 2 to ``long_memory`` tokens, frequencies
    from ``freq_min`` to ``freq_max`` cycles a token; a ``still_share`` of the pairs hardly rotates.
    """
    if not 0 < freq_min < freq_max <= 0.5 or long_memory <= 2:
        raise InvalidInputError("need 0 < freq_min < freq_max <= 1/2 and long_memory > 2")
    dt = torch.exp(torch.linspace(math.log(1 / long_memory), math.log(0.5), len(layer.dt_bias)))
    layer.alpha_bias.fill_(math.log(math.expm1(1.0)))
    layer.dt_bias.copy_(torch.log(torch.expm1(dt)))
    pairs = layer.rate.shape[1]
    still = round(still_share * pairs)
    cycles = torch.linspace(math.log(freq_min), math.log(freq_max), pairs - still).exp()
    half_angle = (math.pi * cycles).clamp(max=1.4)
    layer.rate.copy_(2 * torch.cat([torch.full((still,), 5e-4), torch.tan(half_angle)]))
