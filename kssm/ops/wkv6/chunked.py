"""WKV-6 in parallel: matrix products by halving inside chunks, a linear scan between them."""

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
    r, k, v, log_decay = (_blocks(t, chunk) for t in (r, k, v, log_decay))
    y = (r * bonus.unsqueeze(-2).unsqueeze(1) * k).sum(-1, keepdim=True) * v
    y = y + _within(r, k, v, log_decay)
    starts, final = _chunk_states(k, v, log_decay, initial_state)
    y = y + (r * _before(log_decay).exp()) @ starts.transpose(1, 2)
    return y.flatten(2, 3)[:, :, :length].transpose(1, 2), final


def _blocks(tokens: Tensor, size: int) -> Tensor:
    """[B, T, H, K] -> [B, H, T / size, size, K], padded with zeros."""
    padding = -tokens.shape[1] % size
    padded = F.pad(tokens, (0, 0, 0, 0, 0, padding)) if padding else tokens
    return padded.transpose(1, 2).unflatten(2, (-1, size))


def _within(r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    """What each token reads of the earlier tokens of its chunk, [B, H, n, chunk, V].

    Blocks of 2, 4, ..., chunk tokens: the second half reads the first across the middle. Decays
    are summed from the middle outwards, so every exponent is <= 0 and nothing is subtracted.
    """
    chunk = r.shape[-2]
    y = torch.zeros_like(v)
    size = 2
    while size <= chunk:
        halves = (-1, 2, size // 2)
        queries = r.unflatten(-2, halves)[..., 1, :, :]
        keys, values = (t.unflatten(-2, halves)[..., 0, :, :] for t in (k, v))
        earlier, later = log_decay.unflatten(-2, halves).unbind(-3)
        queries = queries * _before(later).exp()
        keys = keys * _after(earlier).exp()
        read = (queries @ keys.transpose(-1, -2)) @ values
        y = y + torch.stack([torch.zeros_like(read), read], dim=-3).flatten(-4, -2)
        size *= 2
    return y


def _chunk_states(
    k: Tensor, v: Tensor, log_decay: Tensor, initial_state: Tensor
) -> tuple[Tensor, Tensor]:
    """The states before each chunk [B, n, H, K, V] and the one after the last."""
    update = (k * _after(log_decay).exp()).transpose(-1, -2) @ v
    decay = log_decay.sum(-2).exp().unsqueeze(-1)
    if update.shape[2] == 1:
        final = decay[:, :, 0] * initial_state + update[:, :, 0]
        return initial_state.unsqueeze(1), final
    ends = linear_scan(decay.transpose(1, 2), update.transpose(1, 2), initial_state)
    return torch.cat([initial_state.unsqueeze(1), ends[:, :-1]], dim=1), ends[:, -1]


def _before(log_decay: Tensor) -> Tensor:
    """Sum of the decays of earlier tokens, along the last but one dimension."""
    return F.pad(log_decay[..., :-1, :], (0, 0, 1, 0)).cumsum(-2)


def _after(log_decay: Tensor) -> Tensor:
    """Sum of the decays of later tokens, along the last but one dimension."""
    return F.pad(log_decay[..., 1:, :], (0, 0, 0, 1)).flip(-2).cumsum(-2).flip(-2)
