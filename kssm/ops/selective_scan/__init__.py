"""The selective scan of Mamba in plain PyTorch (Gu and Dao, "Mamba", 2023, section 3)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from kssm.ops.linear_scan import linear_scan
from kssm.ops.pieces import in_pieces, piece_length

__all__ = ["selective_scan", "selective_step"]


def selective_scan(
    x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """h_t = exp(step_t a) h_{t-1} + step_t b_t x_t ; y_t = c_t . h_t for every channel.

    Zero-order hold for the decay and its first-order form for the input, as in Mamba.

    Args:
        x, step: [B, T, D]; a token with step 0 leaves the state untouched, bit for bit.
        a: [D, N], negative.
        b, c: [B, T, N], shared by all channels.
        state: [B, D, N] before the first token. All of one floating dtype.

    Returns:
        y [B, T, D] and the state after the last token.
    """
    with torch.autocast(x.device.type, enabled=False):
        length = piece_length(x.device)
        return in_pieces(partial(_advance, a), state, (x, step, b, c), length)


def _advance(
    a: Tensor, state: Tensor, x: Tensor, step: Tensor, b: Tensor, c: Tensor
) -> tuple[Tensor, Tensor]:
    decay = torch.exp(step.unsqueeze(-1) * a)
    value = (step * x).unsqueeze(-1) * b.unsqueeze(-2)
    states = linear_scan(decay, value, state)
    return (states @ c.unsqueeze(-1)).squeeze(-1), states[:, -1].clone()


def selective_step(
    x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of ``selective_scan``: x, step [N, D], b, c [N, S], state [N, D, S]."""
    decay = torch.exp(step.unsqueeze(-1) * a)
    state = decay * state + (step * x).unsqueeze(-1) * b.unsqueeze(-2)
    return (state * c.unsqueeze(-2)).sum(-1), state
