"""WKV-4 token by token."""

from __future__ import annotations

import torch
from torch import Tensor

NOTHING = -1e30
"""Logarithm of no weight at all: finite, so that differences are."""


def wkv4_token(
    k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token [B, D] after ``state`` [B, D, 3], whose weights then decay by exp(-decay)."""
    numerator, denominator, peak = state.unbind(-1)
    peak = torch.where(denominator == 0, NOTHING, peak)
    top = torch.maximum(peak, k + bonus)
    old, new = torch.exp(peak - top), torch.exp(k + bonus - top)
    y = (old * numerator + new * v) / (old * denominator + new)
    top = torch.maximum(peak - decay, k)
    old, new = torch.exp(peak - decay - top), torch.exp(k - top)
    return y, torch.stack([old * numerator + new * v, old * denominator + new, top], dim=-1)


def wkv4_reference(
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    bonus: Tensor,
    state: Tensor,
    dt: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Plain ``wkv4``: arguments and results as there."""
    outputs: list[Tensor] = []
    for t in range(k.shape[1]):
        decay = rate if dt is None else rate * dt[:, t, None]
        y, new = wkv4_token(k[:, t], v[:, t], decay.expand_as(k[:, t]), bonus, state)
        if lengths is not None:
            new = torch.where((t < lengths)[:, None, None], new, state)
        state = new
        outputs.append(y)
    return torch.stack(outputs, dim=1), state
