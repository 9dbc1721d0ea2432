"""The WKV-6 recurrence, token by token: what the parallel form must equal."""

from __future__ import annotations

import torch
from torch import Tensor


def wkv6_reference(
    r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, initial_state: Tensor
) -> tuple[Tensor, Tensor]:
    """Shapes as in ``wkv6``; all tensors of one dtype."""
    state = initial_state
    outputs: list[Tensor] = []
    for t in range(r.shape[1]):
        update = k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
        read = state + bonus.unsqueeze(-1) * update
        outputs.append((r[:, t].unsqueeze(-1) * read).sum(-2))
        state = log_decay[:, t].exp().unsqueeze(-1) * state + update
    return torch.stack(outputs, dim=1), state
