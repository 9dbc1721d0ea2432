"""The recurrence's coefficients, computed once for every plain-PyTorch path.

With s = a + i w, the step D and r = 1 / (1 + D s / 2) the bilinear update is

    h' = λ h + γ u = h + γ (u - s h),    γ = D r,    λ - 1 = -s γ.

The right-hand form never rounds λ itself: for slow decays λ is within a few units in the last
place of one, and a rounded λ is a wrong time constant that adds up over a long sequence.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_STEP = 1e10
"""Steps are cut here, so that |1 + D s / 2|² stays finite in fp32 for |a|, |w| up to 1e9."""

_SOFTPLUS_THRESHOLD = 40.0
"""Above it softplus(x) = x to float64 precision (and exp(40) is finite in fp32)."""


class ScanParameters(NamedTuple):
    """Per-channel parameters, each [D] in fp32 (fp64 when the inputs are fp64)."""

    alpha_bias: Tensor
    omega_bias: Tensor
    omega_scale: Tensor
    dt_bias: Tensor
    c_re: Tensor
    c_im: Tensor


class Gates(NamedTuple):
    """Coefficients of every token as real tensors [..., D], with τ = D / 2 and p + i q = 1 + τ s.

    The complex ones are put together when asked for: real arithmetic costs a fraction.
    """

    a: Tensor
    w: Tensor
    step: Tensor  # D
    p: Tensor
    q: Tensor
    excess: Tensor  # |p + i q|² - p
    inverse: Tensor  # 1 / |p + i q|²

    @property
    def rate(self) -> Tensor:
        """s = a + i w."""
        return torch.complex(self.a, self.w)

    @property
    def resolvent(self) -> Tensor:
        """r = 1 / (p + i q)."""
        return torch.complex(self.p * self.inverse, -self.q * self.inverse)

    @property
    def gain(self) -> Tensor:
        """γ = D r."""
        scale = self.step * self.inverse
        return torch.complex(self.p * scale, -self.q * scale)

    @property
    def increment(self) -> Tensor:
        """λ - 1 = -s γ."""
        scale = -2 * self.inverse
        return torch.complex(self.excess * scale, self.q * scale)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), accurate at both ends."""
    return F.softplus(x, threshold=_SOFTPLUS_THRESHOLD)


def compute_gates(
    alpha: Tensor, omega: Tensor, dt: Tensor, factor: Tensor | None, parameters: ScanParameters
) -> Gates:
    """Coefficients for inputs [..., D] that are already in the compute dtype.

    ``factor`` broadcasts against them and multiplies the step (None = 1).
    """
    step = softplus(dt + parameters.dt_bias)
    if factor is not None:
        step = step * factor
    step = step.clamp(max=MAX_STEP)
    a = softplus(alpha + parameters.alpha_bias)
    w = parameters.omega_scale * (omega + parameters.omega_bias)
    half = 0.5 * step
    damping, q = half * a, half * w
    p = 1 + damping
    excess = damping * p + q * q
    return Gates(a, w, step, p, q, excess, torch.reciprocal(excess + p))


def drive(x: Tensor, b_re: Tensor, b_im: Tensor) -> Tensor:
    """The complex input u = b x [..., D]."""
    channels = x.shape[-1]
    return torch.complex(expand_groups(b_re, channels) * x, expand_groups(b_im, channels) * x)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The arithmetic's dtype for inputs of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def expand_groups(values: Tensor, channels: int) -> Tensor:
    """[..., G] -> [..., D]: channel d reads group d // (D // G)."""
    return values.repeat_interleave(channels // values.shape[-1], dim=-1)


def hold_mask(tokens: int, token_dt: Tensor | None, lengths: Tensor | None) -> Tensor | None:
    """[B, T] bool, true where a token leaves the state untouched; None when none can."""
    hold = None if token_dt is None else token_dt == 0
    if lengths is not None:
        past = past_end(tokens, lengths)
        hold = past if hold is None else hold | past
    return hold


def past_end(tokens: int, lengths: Tensor) -> Tensor:
    """[B, T] bool, true at and after each row's length."""
    return torch.arange(tokens, device=lengths.device) >= lengths[:, None]
