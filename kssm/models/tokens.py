"""Reading along the tokens of padded rows."""

from __future__ import annotations

import torch
from torch import Tensor


def previous_tokens(x: Tensor, before: Tensor) -> Tensor:
    """Each token's predecessor [B, T, D]; ``before`` [B, D] precedes the first."""
    return torch.cat([before.unsqueeze(1).to(x.dtype), x[:, :-1]], dim=1)


def last_valid(x: Tensor, before: Tensor, lengths: Tensor | None) -> Tensor:
    """Each row's last valid token of x [B, T, D], or else ``before`` [B, D], in its dtype."""
    if lengths is None:
        return x[:, -1].to(before.dtype)
    index = (lengths - 1).clamp_min(0)[:, None, None].expand(-1, 1, x.shape[-1])
    last = x.gather(1, index).squeeze(1).to(before.dtype)
    return torch.where((lengths > 0).unsqueeze(1), last, before)
