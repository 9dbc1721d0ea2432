"""The filtered tokens in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def filtered(x: Tensor, weight: Tensor, bias: Tensor, window: Tensor | None) -> Tensor:
    """The causal convolution of x [B, T, C] alone, in the dtype of the products."""
    taps, length = len(weight), x.shape[1]
    if window is None:
        padded = F.pad(x, (0, 0, taps - 1, 0))
    else:
        padded = torch.cat([window.to(x.dtype), x], dim=1)
    y = bias + padded[:, :length] * weight[0]
    for tap in range(1, taps):
        y = y + padded[:, tap : tap + length] * weight[tap]
    return y


def window_after(x: Tensor, window: Tensor | None, kept: int, lengths: Tensor | None) -> Tensor:
    """The last ``kept`` valid tokens of each row [B, kept, C], in x's dtype."""
    length = x.shape[1]
    if lengths is None and length >= kept:
        return x[:, length - kept :]
    before = x.new_zeros(len(x), kept, x.shape[2]) if window is None else window.to(x.dtype)
    if lengths is None or length == 0:
        return torch.cat([before, x], dim=1)[:, length:]
    places = lengths.unsqueeze(1) + torch.arange(-kept, 0, device=x.device)
    old = _pick(before, (places + kept).clamp_max(kept - 1))
    return torch.where((places < 0).unsqueeze(-1), old, _pick(x, places.clamp_min(0)))


def _pick(tokens: Tensor, index: Tensor) -> Tensor:
    """tokens [B, T, C] at index [B, K] -> [B, K, C]."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
