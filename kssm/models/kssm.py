"""KSSM: a stack of gated blocks around the Cayley-discretised damped-rotation scan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kssm.errors import InvalidInputError
from kssm.models.base import State, StateSpec
from kssm.models.layers import CausalConv, RMSNorm, SwiGLU, fed_forward, init_linear
from kssm.models.stack import Block, Stack, StackConfig, compute_dtype, state_dtype
from kssm.ops.joint import Place, split
from kssm.ops.kssm_scan import ScanParameters, kssm_scan, kssm_step_

if TYPE_CHECKING:
    from kssm.models.kssm_layer import KSSMLayer


@dataclass(frozen=True)
class KSSMConfig(StackConfig):
    """Sizes of a KSSM stack.

    Attributes:
        d_inner: channels of the recurrence, one 2x2 rotation block each.
        d_mlp: hidden width of the feed-forward layer, 0 = none.
        rank: rank of the maps from a token to each of alpha, omega and dt.
        group_size: channels that share an input coefficient B and an output norm.
        conv_width: taps of the causal convolution.
    """

    d_model: int = 256
    n_layers: int = 8
    d_inner: int = 320
    d_mlp: int = 320
    rank: int = 32
    group_size: int = 64
    conv_width: int = 4

    presets: ClassVar[Mapping[str, Mapping[str, int]]] = {
        "tiny": {"d_model": 64, "n_layers": 2, "d_inner": 64, "d_mlp": 96, "rank": 8},
        "small": {"d_model": 128, "n_layers": 4, "d_inner": 192, "d_mlp": 128, "rank": 16},
        "base": {"d_model": 256, "n_layers": 8, "d_inner": 320, "d_mlp": 320},
        "large": {"d_model": 512, "n_layers": 12, "d_inner": 640, "d_mlp": 640, "rank": 64},
    }

    def __post_init__(self) -> None:
        sizes = (self.d_model, self.n_layers, self.d_inner, self.rank, self.group_size)
        self.require(min(sizes) >= 1, "sizes must be positive")
        fitting = self.d_mlp >= 0 and self.d_inner % self.group_size == 0
        self.require(fitting, "d_mlp must not be negative, d_inner a multiple of group_size")
        self.require(self.conv_width >= 2, "conv_width must be at least 2")


class KSSMBlock(Block):
    """RMSNorm -> (x, z) -> causal conv -> selective rotation scan -> gate -> feed-forward."""

    recurrent = frozenset(ScanParameters._fields)

    def __init__(self, config: KSSMConfig) -> None:
        super().__init__()
        inner, rank = config.d_inner, config.rank
        self.config = config
        self.rank = rank
        self.groups = inner // config.group_size
        out_scale = config.n_layers**-0.5
        self.norm = RMSNorm(config.d_model)
        self.in_proj = init_linear(config.d_model, 2 * inner)
        self.conv = CausalConv(inner, config.conv_width)
        self.select = init_linear(inner, 3 * rank + 2 * self.groups)
        self.alpha_up = init_linear(rank, inner, std=0.01)
        self.omega_up = init_linear(rank, inner, std=0.003)
        self.dt_up = init_linear(rank, inner, std=0.03)
        self.alpha_bias = nn.Parameter(torch.empty(inner))
        self.omega_bias = nn.Parameter(torch.empty(inner))
        self.dt_bias = nn.Parameter(torch.empty(inner))
        self.c_re = nn.Parameter(torch.empty(inner))
        self.c_im = nn.Parameter(torch.empty(inner))
        self.omega_scale: Tensor
        self.register_buffer("omega_scale", torch.empty(inner))
        self.skip = nn.Parameter(torch.ones(inner))
        self.out_norm = RMSNorm(inner, config.group_size)
        self.out_proj = init_linear(inner, config.d_model, std=out_scale * inner**-0.5)
        self.mlp_norm = RMSNorm(config.d_model) if config.d_mlp else None
        self.mlp = SwiGLU(config.d_model, config.d_mlp, out_scale) if config.d_mlp else None
        with torch.no_grad():
            self.select.weight[3 * rank :] *= 0.1
        nuclear_init(self)

    def scan_parameters(self) -> ScanParameters:
        """The scan's own parameters, in fp32 (fp64) whatever the weights' dtype."""
        wide = state_dtype(self.dt_bias.dtype)
        alpha, omega = self.alpha_bias, self.omega_bias
        own = (alpha, omega, self.omega_scale, self.dt_bias, self.c_re, self.c_im)
        return ScanParameters(*(parameter.to(wide) for parameter in own))

    def selection(self, x: Tensor) -> tuple[Tensor, ...]:
        """alpha, omega, dt [..., d_inner] and complex B [..., groups] twice, from x [..., d_inner].

        The three streams are deviations in the compute dtype; the scan adds the fp32 biases.
        """
        low = self.select(x)
        rank, groups = self.rank, self.groups
        alpha, omega, dt, b_re, b_im = low.split([rank, rank, rank, groups, groups], dim=-1)
        return self.alpha_up(alpha), self.omega_up(omega), self.dt_up(dt), b_re + 1.0, b_im

    def before_scan(
        self, x: Tensor, window: Tensor | None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Place | None]:
        """From the residual stream [B, T, d_model]: what ``after_scan`` wants but y, what the scan
        wants behind the conv's input, and the place of the gate's gradient."""
        normed, residual = self.norm.beside(x, compute_dtype(x))
        inner = self.config.d_inner
        (inputs, gate), places = split(self.in_proj(normed), [inner, inner])
        active, skipped = self.conv.activated(inputs, window, [inner], places[0])
        alpha, omega, dt, b_re, b_im = self.selection(active)
        around = (residual, skipped, gate)
        return around, (inputs, alpha, omega, dt, active, b_re, b_im), places[1]

    def after_scan(
        self,
        residual: Tensor,
        y: Tensor,
        skipped: Tensor,
        gate: Tensor,
        place: Place | None = None,
    ) -> Tensor:
        """Read-out, skip, norm, gate and feed-forward around the residual stream."""
        dtype = compute_dtype(residual)
        y = self.out_proj(self.out_norm.gated(y, skipped, self.skip, gate, dtype, place))
        return fed_forward(residual, y, self.mlp_norm, self.mlp, dtype)

    def state_spec(self) -> StateSpec:
        config, dtype = self.config, state_dtype(self.norm.weight.dtype)
        return {
            "window": ((config.conv_width - 1, config.d_inner), dtype),
            "state": ((config.d_inner, 2), dtype),
        }

    def forward(
        self, x: Tensor, state: State | None, lengths: Tensor | None, dt: Tensor | None
    ) -> tuple[Tensor, State]:
        window = None if state is None else state["window"]
        (residual, skipped, gate), (inputs, *scanned), place = self.before_scan(x, window)
        alpha, omega, step, active, b_re, b_im = scanned
        y, new_state = kssm_scan(
            alpha,
            omega,
            step,
            active,
            b_re,
            b_im,
            self.scan_parameters(),
            token_dt=dt,
            initial_state=None if state is None else state["state"],
            lengths=lengths,
        )
        new_window = self.conv.last_window(inputs, window, lengths).to(new_state.dtype)
        y = self.after_scan(residual, y, skipped, gate, place)
        return y, {"window": new_window, "state": new_state}

    def step_(self, x: Tensor, arena: State, slots: Tensor, dt: Tensor | None) -> Tensor:
        dtype = compute_dtype(x)
        inputs, gate = self.in_proj(self.norm(x).to(dtype)).chunk(2, dim=-1)
        active = F.silu(self.conv.step_(inputs, arena["window"], slots)).to(dtype)
        alpha, omega, step, b_re, b_im = self.selection(active)
        y = kssm_step_(
            alpha,
            omega,
            step,
            active,
            b_re,
            b_im,
            self.scan_parameters(),
            arena["state"],
            slots,
            token_dt=dt,
        )
        return self.after_scan(x, y, active, gate)


class KSSM(Stack):
    """A stack of KSSM blocks with a final norm."""

    def __init__(self, config: KSSMConfig, *, gradient_checkpointing: bool = False) -> None:
        super().__init__(
            config.d_model,
            [KSSMBlock(config) for _ in range(config.n_layers)],
            RMSNorm(config.d_model),
            gradient_checkpointing=gradient_checkpointing,
        )
        self.config = config


@torch.no_grad()
def nuclear_init(
    layer: KSSMBlock | KSSMLayer,
    long_memory: float = 1500.0,
    freq_min: float = 1 / 3000,
    freq_max: float = 1 / 2.1,
    still_share: float = 0.12,
) -> None:
    """Spread the layer's channels over time constants and frequencies.

    The step is log-uniform so that time constants reach from 2 to ``long_memory`` tokens at
    alpha = 1; the angle a token is log-uniform between ``freq_min`` and ``freq_max`` cycles a
    token, and a ``still_share`` of the channels hardly rotates (plain leaky averages).
    The read-out grows as the input gain shrinks, so that every channel starts equally loud.
    """
    if not 0 < freq_min < freq_max <= 0.5 or long_memory <= 2:
        raise InvalidInputError("need 0 < freq_min < freq_max <= 1/2 and long_memory > 2")
    size = layer.dt_bias.shape[0]
    dt = _log_uniform(1 / long_memory, 0.5, size)
    angle = 2 * math.pi * _log_uniform(freq_min, freq_max, size)
    angle[torch.rand(size) < still_share] = 1e-3
    layer.alpha_bias.fill_(math.log(math.expm1(1.0)))
    layer.dt_bias.copy_(torch.log(torch.expm1(dt)))
    layer.omega_scale.copy_(2 * torch.tan((angle / 2).clamp(max=1.4)) / dt)
    layer.omega_bias.fill_(1.0)
    loudness = (0.5 * dt.rsqrt()).clamp(max=12.0)
    layer.c_re.copy_(torch.randn(size) * loudness)
    layer.c_im.copy_(torch.randn(size) * loudness)


def _log_uniform(low: float, high: float, size: int) -> Tensor:
    return torch.exp(torch.empty(size).uniform_(math.log(low), math.log(high)))
