"""The recurrence's coefficients, computed once for every plain-PyTorch path.

A head's decay and a pair's rotation are the two factors of the split Cayley map

    λ = (1 - u) / (1 + u) · (1 - i v) / (1 + i v),    u = q / sqrt(1 + q²) < 1.

Bounded like this, the decay is exp(-2 asinh(q)): positive for every q >= 0, and equal to the
continuous one to second order, as Cayley's is. The rotation is exp(-i θ) with θ = 2 atan(v).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_STEP = 1e10
"""Steps and rates are cut here, so that their products stay finite in fp32."""

_LIMIT = 1e18
"""Of q and v: their squares are finite in fp32."""

_SOFTPLUS_THRESHOLD = 40.0
"""Above it softplus(x) = x to float64 precision (and exp(40) is finite in fp32)."""


class MatrixParameters(NamedTuple):
    """Parameters of the heads and pairs, fp32 (fp64 when the inputs are fp64)."""

    alpha_bias: Tensor  # [H]
    dt_bias: Tensor  # [H]
    rate: Tensor  # [G, N] radians a nominal interval


class Gates(NamedTuple):
    """Coefficients of every token."""

    log_decay: Tensor  # [..., H] natural logarithm, <= 0
    gain: Tensor  # [..., H]
    half_angle: Tensor  # [..., G, N] atan(v) = θ / 2


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What is computed in: fp64 for fp64 inputs, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def compute_gates(
    alpha: Tensor,
    dt: Tensor,
    omega: Tensor,
    factor: Tensor | None,
    parameters: MatrixParameters,
) -> Gates:
    """Gates from alpha, dt [..., H], omega [..., G, N] and the tokens' factor [...] (None = 1)."""
    step = _softplus(dt + parameters.dt_bias).clamp(max=MAX_STEP)
    rate = _softplus(alpha + parameters.alpha_bias).clamp(max=MAX_STEP)
    v = 0.5 * parameters.rate * (1 + omega)
    if factor is not None:
        step = step * factor[..., None]
        v = v * factor[..., None, None]
    q = (0.5 * step * rate).clamp(max=_LIMIT)
    u = q * torch.rsqrt(1 + q.square())
    return Gates(-2 * torch.asinh(q), step / (1 + u), torch.atan(v.clamp(-_LIMIT, _LIMIT)))


def rotate(pairs: Tensor, angle: Tensor, scale: Tensor | None = None) -> Tensor:
    """Pairs [..., 2 N] (real parts, then imaginary parts) times scale · exp(i angle) [..., N]."""
    re, im = pairs.chunk(2, dim=-1)
    cos, sin = torch.cos(angle), torch.sin(angle)
    if scale is not None:
        cos, sin = cos * scale, sin * scale
    return torch.cat([re * cos - im * sin, re * sin + im * cos], dim=-1)


def hold(gates: Gates, valid: Tensor) -> Gates:
    """Gates that leave the state untouched wherever ``valid`` [...] is False."""
    heads = ~valid.unsqueeze(-1)
    return Gates(
        gates.log_decay.masked_fill(heads, 0),
        gates.gain.masked_fill(heads, 0),
        gates.half_angle.masked_fill(heads.unsqueeze(-1), 0),
    )


def _softplus(x: Tensor) -> Tensor:
    return F.softplus(x, threshold=_SOFTPLUS_THRESHOLD)
