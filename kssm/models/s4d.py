"""S4D: a diagonal complex state space for each channel, the same at every token.

Source: Gu, Gupta, Goel and Ré, "On the Parameterization and Initialization of Diagonal State Space
Models", 2022. B is fixed to 1 and absorbed by C; only one of each pair of conjugate modes is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kssm.models.base import State, StateSpec
from kssm.models.layers import RMSNorm, SwiGLU, init_linear
from kssm.models.stack import Block, Stack, StackConfig, compute_dtype, state_dtype
from kssm.ops.diagonal_scan import (
    Discretization,
    Modes,
    diagonal_convolution,
    diagonal_scan,
    diagonal_step_,
    transition,
)


@dataclass(frozen=True)
class S4DConfig(StackConfig):
    """Sizes of an S4D stack.

    Attributes:
        d_state: complex modes a channel.
        d_mlp: hidden width of the feed-forward layer, 0 = none.
        discretization: "zoh" (exact for inputs held between tokens) or "bilinear".
        norm_eps: epsilon of the RMS norms.
    """

    d_model: int = 256
    n_layers: int = 11
    d_state: int = 32
    d_mlp: int = 320
    discretization: Discretization = "zoh"
    norm_eps: float = 1e-5

    presets: ClassVar[Mapping[str, Mapping[str, int]]] = {
        "tiny": {"d_model": 64, "n_layers": 2, "d_state": 16, "d_mlp": 112},
        "small": {"d_model": 128, "n_layers": 5, "d_mlp": 160},
        "base": {"d_model": 256, "n_layers": 11, "d_mlp": 320},
        "large": {"d_model": 512, "n_layers": 17, "d_mlp": 640},
    }

    def __post_init__(self) -> None:
        self.require(min(self.d_model, self.n_layers, self.d_state) >= 1, "sizes must be positive")
        self.require(self.d_mlp >= 0, "d_mlp must not be negative")
        known = self.discretization in ("zoh", "bilinear")
        self.require(known, "discretization must be 'zoh' or 'bilinear'")


class S4DBlock(Block):
    """RMSNorm -> diagonal state space -> GELU -> gated projection -> feed-forward."""

    recurrent = frozenset({"log_step", "log_decay", "frequency"})

    def __init__(self, config: S4DConfig) -> None:
        super().__init__()
        width, modes = config.d_model, config.d_state
        self.config = config
        out_scale = config.n_layers**-0.5
        self.norm = RMSNorm(width, eps=config.norm_eps)
        low, high = math.log(1e-3), math.log(1e-1)
        self.log_step = nn.Parameter(torch.empty(width).uniform_(low, high))
        self.log_decay = nn.Parameter(torch.full((width, modes), math.log(0.5)))  # S4D-Lin
        self.frequency = nn.Parameter(math.pi * torch.arange(modes).repeat(width, 1).float())
        self.c_re = nn.Parameter(torch.randn(width, modes) * math.sqrt(0.5))
        self.c_im = nn.Parameter(torch.randn(width, modes) * math.sqrt(0.5))
        self.skip = nn.Parameter(torch.randn(width))
        self.out_proj = init_linear(width, 2 * width, std=(config.n_layers * width) ** -0.5)
        self.mlp_norm = RMSNorm(width, eps=config.norm_eps) if config.d_mlp else None
        self.mlp = SwiGLU(width, config.d_mlp, out_scale) if config.d_mlp else None

    def state_spec(self) -> StateSpec:
        shape = (self.config.d_model, self.config.d_state, 2)
        return {"state": (shape, state_dtype(self.log_step.dtype))}

    def forward(
        self, x: Tensor, state: State | None, lengths: Tensor | None, dt: Tensor | None
    ) -> tuple[Tensor, State]:
        wide = state_dtype(self.log_step.dtype)
        inputs = self.norm(x).to(wide)
        if state is None:
            before = torch.complex(*inputs.new_zeros(2, len(x), *self.c_re.shape))
        else:
            before = torch.complex(*state["state"].to(wide).unbind(-1))
        if dt is None:
            decay, gain = self.transition(None)
            y, after = diagonal_convolution(inputs, decay, gain, self._c(), before, lengths)
        else:
            dt = dt.to(wide)
            if lengths is not None:
                steps = torch.arange(x.shape[1], device=x.device)
                dt = dt.masked_fill(steps >= lengths.unsqueeze(1), 0.0)
            y, after = diagonal_scan(inputs, dt, self.transition, self._c(), before)
        mixed = F.gelu(y + self.skip * inputs)
        return self._finish(x, mixed), {"state": torch.view_as_real(after)}

    def step_(self, x: Tensor, arena: State, slots: Tensor, dt: Tensor | None) -> Tensor:
        inputs = self.norm(x).to(state_dtype(self.log_step.dtype))
        rule = self.config.discretization
        mixed = diagonal_step_(inputs, self._modes(), rule, self.skip, arena["state"], slots, dt)
        return self._finish(x, mixed)

    def transition(self, dt: Tensor | None) -> tuple[Tensor, Tensor]:
        """What a token does to the modes: decay and input gain [..., d_model, d_state], complex128.

        ``dt`` [...] scales the learned step; 0 gives decay 1 and gain 0, bit for bit.
        """
        return transition(self._modes(), self.config.discretization, dt).complex()

    def _modes(self) -> Modes:
        return Modes(self.log_step, self.log_decay, self.frequency, self.c_re, self.c_im)

    def _c(self) -> Tensor:
        wide = state_dtype(self.log_step.dtype)
        return torch.complex(self.c_re.to(wide), self.c_im.to(wide))

    def _finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Gated projection and feed-forward around the residual stream."""
        dtype = compute_dtype(x)
        x = x + F.glu(self.out_proj(mixed.to(dtype)), dim=-1)
        if self.mlp is not None and self.mlp_norm is not None:
            x = x + self.mlp(self.mlp_norm(x).to(dtype))
        return x


class S4D(Stack):
    """A stack of S4D blocks with a final norm."""

    def __init__(self, config: S4DConfig, *, gradient_checkpointing: bool = False) -> None:
        super().__init__(
            config.d_model,
            [S4DBlock(config) for _ in range(config.n_layers)],
            RMSNorm(config.d_model, eps=config.norm_eps),
            gradient_checkpointing=gradient_checkpointing,
        )
        self.config = config
