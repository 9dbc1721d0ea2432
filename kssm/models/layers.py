"""Small layers the models share: RMS norms, a streaming causal convolution, SwiGLU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kssm.ops.conv_silu import conv_silu, filtered, window_after
from kssm.ops.conv_step import conv_step_
from kssm.ops.gated_norm import gated_norm, residual_norm, rms_norm
from kssm.ops.joint import Place
from kssm.ops.swiglu import swiglu


class RMSNorm(nn.Module):
    """Root-mean-square norm over groups of the last dimension, computed in at least fp32.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
    """

    def __init__(self, size: int, group_size: int | None = None, eps: float = 1e-6) -> None:
        super().__init__()
        self.group_size = group_size or size
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        if wide.is_cuda and self.group_size == wide.shape[-1] and self.weight.dtype == wide.dtype:
            return F.rms_norm(wide, wide.shape[-1:], self.weight, self.eps)  # one kernel
        return rms_norm(x, self.weight, self.group_size, self.eps)

    def beside(
        self, x: Tensor, dtype: torch.dtype, plus: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The norm of x + ``plus`` over all channels in ``dtype``, and that sum, to which the
        layer's result goes."""
        return residual_norm(x, self.weight, self.eps, dtype, plus)

    def gated(
        self,
        x: Tensor,
        value: Tensor,
        skip: Tensor,
        gate: Tensor,
        dtype: torch.dtype,
        place: Place | None = None,
    ) -> Tensor:
        """(norm(x) + skip value) SiLU(gate) in ``dtype``; ``place`` as in ``gated_norm``."""
        options = (self.weight, self.group_size, self.eps)
        return gated_norm(x, *options, value, skip, gate, dtype, place)


class CausalConv(nn.Module):
    """Depth-wise causal convolution of a few taps, carrying its last inputs as state."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.width = width
        weight = torch.randn(width, channels) * 0.2
        weight[-1] += 0.6
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, window: Tensor | None) -> Tensor:
        """Filter x [B, T, C] after ``window`` [B, width - 1, C] (None = zeros)."""
        return filtered(x, self.weight, self.bias, window)

    def activated(
        self,
        x: Tensor,
        window: Tensor | None,
        sizes: Sequence[int],
        place: Place | None = None,
    ) -> tuple[Tensor, ...]:
        """SiLU of the filtered tokens in pieces of ``sizes`` channels, the first piece twice."""
        return conv_silu(x, self.weight, self.bias, window, sizes, place)

    def last_window(self, x: Tensor, window: Tensor | None, lengths: Tensor | None) -> Tensor:
        """The window after the last valid token of each row [B, width - 1, C], in x's dtype."""
        return window_after(x, window, self.width - 1, lengths)

    def step_(self, x: Tensor, windows: Tensor, slots: Tensor, *, silu: bool = False) -> Tensor:
        """Filter one token a row x [N, C], shifting the arena rows of ``windows`` in place.

        Non-finite inputs are not remembered: the row keeps its old window. ``silu`` applies SiLU.
        """
        return conv_step_(x, self.weight, self.bias, windows, slots, silu=silu)


class SwiGLU(nn.Module):
    """Gated feed-forward layer (Shazeer, "GLU Variants Improve Transformer", 2020)."""

    def __init__(self, d_model: int, d_hidden: int, out_scale: float) -> None:
        super().__init__()
        self.up = init_linear(d_model, 2 * d_hidden)
        self.down = init_linear(d_hidden, d_model, std=out_scale * d_hidden**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(swiglu(self.up(x)))


def fed_forward(
    residual: Tensor, y: Tensor, norm: RMSNorm | None, mlp: SwiGLU | None, dtype: torch.dtype
) -> Tensor:
    """residual + y, and the feed-forward layer beside it; a block may have none (None)."""
    if norm is None or mlp is None:
        return residual + y
    normed, x = norm.beside(residual, dtype, y)
    return x + mlp(normed)


def init_linear(d_in: int, d_out: int, std: float | None = None, bias: bool = False) -> nn.Linear:
    """A linear layer with normal weights (default std d_in^-1/2) and zero bias."""
    layer = nn.Linear(d_in, d_out, bias=bias)
    nn.init.normal_(layer.weight, std=d_in**-0.5 if std is None else std)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
