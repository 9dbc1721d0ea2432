"""WKV-6 in parallel: blocks joined in pairs inside chunks, a linear scan between them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kssm.ops.linear_scan import linear_scan

_CHUNK = 64


def wkv6_chunked(
    r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, initial_state: Tensor
) -> tuple[Tensor, Tensor]:
    """Shapes as in ``wkv6``; all tensors of one dtype."""
    length = r.shape[1]
    chunk = min(_CHUNK, 1 << (length - 1).bit_length())
    r, k, v = (_blocks(t, chunk) for t in (r, k, v))
    decay = _blocks(log_decay, chunk).exp()
    y = (r * bonus.unsqueeze(-2).unsqueeze(1) * k).sum(-1, keepdim=True) * v
    r, k, decay = _within_(y, r, k, v, decay)
    starts, final = _chunk_states(k.transpose(-1, -2) @ v, decay, initial_state)
    y = y + r @ starts
    return y.flatten(2, 3)[:, :, :length].transpose(1, 2), final


def _blocks(tokens: Tensor, size: int) -> Tensor:
    """[B, T, H, K] -> [B, H, T / size, size, K], padded with zeros."""
    padding = -tokens.shape[1] % size
    padded = F.pad(tokens, (0, 0, 0, 0, 0, padding)) if padding else tokens
    return padded.transpose(1, 2).unflatten(2, (-1, size))


def _within_(
    y: Tensor, r: Tensor, k: Tensor, v: Tensor, decay: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Add to y [B, H, n, chunk, V] what each token reads of the earlier tokens of its chunk.

    Neighbouring blocks of 1, 2, 4, ... tokens are joined: the second reads the first, its queries
    decayed since its own start and the first's keys decayed until its end. Returns the queries
    and keys of the whole chunk so decayed, and the chunk's decay [B, H, n, 1, K].
    """
    r, k, decay = (t.unsqueeze(-2) for t in (r, k, decay))
    while r.shape[-3] > 1:
        halves = (-1, 2, r.shape[-2])
        (r_0, k_0, decay_0), (r_1, k_1, decay_1) = (
            [t[..., half::2, :, :] for t in (r, k, decay)] for half in (0, 1)
        )
        read = (r_1 @ k_0.transpose(-1, -2)) @ v.unflatten(-2, halves)[..., 0, :, :]
        y.unflatten(-2, halves)[..., 1, :, :].add_(read)
        r = torch.cat([r_0, r_1 * decay_0], dim=-2)
        k = torch.cat([k_0 * decay_1, k_1], dim=-2)
        decay = decay_0 * decay_1
    return r.squeeze(-3), k.squeeze(-3), decay.squeeze(-3)


def _chunk_states(update: Tensor, decay: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    """States before each chunk [B, H, n, K, V] and after the last [B, H, K, V].

    ``update`` [B, H, n, K, V] is what a chunk adds, ``decay`` [B, H, n, 1, K] what it leaves.
    """
    factor = decay.transpose(-1, -2)
    if update.shape[2] == 1:
        return initial.unsqueeze(2), factor[:, :, 0] * initial + update[:, :, 0]
    ends = linear_scan(factor.transpose(1, 2), update.transpose(1, 2), initial)
    starts = torch.cat([initial.unsqueeze(1), ends[:, :-1]], dim=1)
    return starts.transpose(1, 2), ends[:, -1]
