"""What the selective models share: steps a token, and where they start."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_uniform_step_bias(
    size: int, shortest: float = 1e-3, longest: float = 1e-1, floor: float = 1e-4
) -> Tensor:
    """Biases [size] whose softplus is log-uniform between ``shortest`` and ``longest``."""
    low, high = math.log(shortest), math.log(longest)
    step = torch.exp(torch.rand(size) * (high - low) + low).clamp_min(floor)
    return step + torch.log(-torch.expm1(-step))


def token_steps(step: Tensor, dt: Tensor | None, lengths: Tensor | None) -> Tensor:
    """Steps [B, T, C] times the token factors ``dt`` [B, T], and 0 at or after ``lengths`` [B]."""
    if dt is not None:
        step = step * dt.unsqueeze(-1).to(step.dtype)
    if lengths is None:
        return step
    tokens = torch.arange(step.shape[1], device=step.device)
    return step.masked_fill((tokens >= lengths.unsqueeze(1)).unsqueeze(-1), 0.0)
