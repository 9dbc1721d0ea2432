"""Attention over a sliding window, and the ring of remembered tokens that continues it.

A token sees itself and the ``window - 1`` tokens before it. The ring holds the last ``window``
tokens of a row: token number n lies at place n mod window. How many tokens a row has seen is kept
in ``count``, which goes back by a multiple of the window once the ring is full, so that it stays
below 2 * window for ever.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_MIN_BLOCK = 64


def attend(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Causal windowed attention of fresh rows.

    Args:
        q: [B, T, query heads, D].
        k, v: [B, T, heads, D]; query head i reads head i // (query heads / heads).
        window: tokens that a token sees, itself included.

    Returns:
        [B, T, query heads, D].
    """
    if q.shape[1] <= window:
        return _sdpa(q, k, v, mask=None)
    empty = k.new_zeros(len(k), window, *k.shape[2:])
    return attend_after(q, k, v, empty, empty, torch.zeros_like(k[:, 0, 0, 0], dtype=torch.long))


def attend_after(
    q: Tensor, k: Tensor, v: Tensor, past_k: Tensor, past_v: Tensor, filled: Tensor
) -> Tensor:
    """As ``attend``, after past tokens [B, window, heads, D], oldest first.

    ``filled`` [B]: how many of the past tokens are real, the last ones. Time and memory grow with
    T * window: the queries go in blocks that each see their own stretch of keys.
    """
    length, window = q.shape[1], past_k.shape[1]
    block = min(length, max(window, _MIN_BLOCK))
    keys, values = (torch.cat([p.to(t.dtype), t], 1) for p, t in ((past_k, k), (past_v, v)))
    span = window + block
    mask = _band(block, window, q.device)
    places = torch.arange(span, device=q.device)
    real = places >= (window - filled).unsqueeze(1)
    first = _sdpa(q[:, :block], keys[:, :span], values[:, :span], mask & real[:, None, None])
    if length == block:
        return first
    k_rest, v_rest = (_stretches(t[:, block:], span, block) for t in (keys, values))
    rest = _sdpa(_stretches(q[:, block:], block, block), k_rest, v_rest, mask)
    rest = rest.unflatten(0, (len(q), -1)).flatten(1, 2)
    return torch.cat([first, rest[:, : length - block]], dim=1)


def attend_ring(q: Tensor, keys: Tensor, values: Tensor, filled: Tensor) -> Tensor:
    """One query a row [N, query heads, D] over rings [N, window, heads, D] that hold its token."""
    places = torch.arange(keys.shape[1], device=q.device)
    real = places < filled.unsqueeze(1)
    keys, values = keys.to(q.dtype), values.to(q.dtype)
    return _sdpa(q.unsqueeze(1), keys, values, real[:, None, None]).squeeze(1)


def seen(count: Tensor, window: int) -> Tensor:
    """``count`` [..., 1] as it is stored -> whole numbers [...] in 0 ... 2 window - 1."""
    return count.detach().squeeze(-1).round().clamp(0, 2 * window - 1).long()


def advanced(count: Tensor, tokens: Tensor | int, window: int) -> Tensor:
    """The stored count after ``tokens`` more."""
    total = count + tokens
    return torch.where(total < window, total, window + total.remainder(window))


def ring_in_order(ring: Tensor, count: Tensor) -> Tensor:
    """The ring's tokens [B, window, ...], oldest first; ``count`` [B] from ``seen``."""
    window = ring.shape[1]
    places = (count.unsqueeze(1) + torch.arange(window, device=ring.device)) % window
    return _pick(ring, places)


def ring_after(ring: Tensor, tokens: Tensor, count: Tensor, lengths: Tensor | None) -> Tensor:
    """The ring after the valid ones of ``tokens`` [B, T, ...], in the ring's dtype."""
    window = ring.shape[1]
    added = torch.full_like(count, tokens.shape[1]) if lengths is None else lengths
    places = torch.arange(window, device=ring.device)
    age = ((count + added - 1).unsqueeze(1) - places) % window
    source = added.unsqueeze(1) - 1 - age
    new = _pick(tokens, source.clamp_min(0)).to(ring.dtype)
    return torch.where((source >= 0).view(*source.shape, *[1] * (ring.dim() - 2)), new, ring)


def _pick(tokens: Tensor, index: Tensor) -> Tensor:
    """tokens [B, T, ...] at index [B, K] -> [B, K, ...]."""
    rows = torch.arange(len(tokens), device=tokens.device).unsqueeze(1)
    return tokens[rows, index]


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention with tokens before heads; causal without a mask."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    y = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped
    )
    return y.transpose(1, 2)


def _band(block: int, window: int, device: torch.device) -> Tensor:
    """Query i of a block sees the keys i + 1 ... i + window of its stretch, [block, span]."""
    i = torch.arange(block, device=device).unsqueeze(1)
    m = torch.arange(window + block, device=device)
    return (m > i) & (m <= i + window)


def _stretches(tokens: Tensor, size: int, step: int) -> Tensor:
    """Overlapping stretches of [B, T, H, D], ``step`` apart: [B * n, size, H, D]."""
    missing = -(tokens.shape[1] - (size - step)) % step
    padded = F.pad(tokens, (0, 0, 0, 0, 0, missing))
    return padded.unfold(1, size, step).permute(0, 1, 4, 2, 3).flatten(0, 1)
