"""The scan as matrix products over chunks, in plain PyTorch.

With the phases φ_t = θ_1 + ... + θ_t the state exp(i φ_t) h_t only decays, and one factor a head
does that: what is left is the chunked form of state-space duality (Dao and Gu, "Transformers are
SSMs", 2024) on B and C that are turned by φ.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from kssm.ops.linear_scan import linear_scan
from kssm.ops.matrix_scan.gates import (
    Gates,
    MatrixParameters,
    compute_dtype,
    compute_gates,
    hold,
    rotate,
)
from kssm.ops.pieces import in_pieces

_CHUNK = 64
_PIECE = 16 * _CHUNK
"""Tokens whose weights among each other [chunks, H, chunk, chunk] exist at the same time."""


def scan_chunked(
    x: Tensor,
    b: Tensor,
    c: Tensor,
    alpha: Tensor,
    dt: Tensor,
    omega: Tensor,
    parameters: MatrixParameters,
    token_dt: Tensor | None = None,
    initial_state: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Shapes as in ``matrix_scan``; autograd gives the gradients."""
    wide, kind = compute_dtype(x.dtype), x.dtype
    with torch.autocast(x.device.type, enabled=False):
        x, b, c, alpha, dt, omega = (t.to(wide) for t in (x, b, c, alpha, dt, omega))
        factor = None if token_dt is None else token_dt.to(wide)
        gates = compute_gates(alpha, dt, omega, factor, parameters)
        invalid = None
        if lengths is not None:
            valid = torch.arange(x.shape[1], device=x.device) < lengths.unsqueeze(1)
            invalid = ~valid[..., None, None]
            gates, x = hold(gates, valid), x.masked_fill(invalid, 0)
        b, c, phase = _turned(b, c, gates)
        state = _inner(initial_state, x, omega.shape[-1])
        u = x * gates.gain.unsqueeze(-1)
        y, state = in_pieces(_advance, state, (u, gates.log_decay, b, c), _PIECE)
        y = y if invalid is None else y.masked_fill(invalid, 0)
        return y.to(kind), _outer(state, phase[:, -1])


def _turned(b: Tensor, c: Tensor, gates: Gates) -> tuple[Tensor, Tensor, Tensor]:
    """B and C in the turning frame [B, T, G, 2 N], and the phases [B, T, G, N].

    Sums are taken in fp64 and brought back to one turn: fp32 would lose 1e-4 in 32k tokens.
    """
    half = gates.half_angle
    total = (2 * half).double().cumsum(1)
    phase = total.remainder(2 * math.pi).to(half.dtype)
    return rotate(b, phase - half, torch.cos(half)), rotate(c, phase), phase


def _inner(state: Tensor | None, x: Tensor, pairs: int) -> Tensor:
    """[B, H, P, N, 2] -> [B, H, P, 2 N]: real parts, then imaginary parts."""
    if state is None:
        return x.new_zeros(x.shape[0], *x.shape[2:], 2 * pairs)
    return state.to(x.dtype).transpose(-1, -2).flatten(-2)


def _outer(state: Tensor, phase: Tensor) -> Tensor:
    """Back from the turning frame at ``phase`` [B, G, N], and to [B, H, P, N, 2]."""
    angle = phase.repeat_interleave(state.shape[1] // phase.shape[1], dim=1).unsqueeze(2)
    return rotate(state, -angle).unflatten(-1, (2, -1)).transpose(-1, -2).contiguous()


def _advance(
    state: Tensor, u: Tensor, log_decay: Tensor, b: Tensor, c: Tensor
) -> tuple[Tensor, Tensor]:
    """A piece: u [B, T, H, P], log_decay [B, T, H], b, c [B, T, G, W], state [B, H, P, W]."""
    tokens, groups = u.shape[1], b.shape[2]
    chunk = min(_CHUNK, 1 << (tokens - 1).bit_length())
    u, log_decay, b, c = (_chunks(entry, chunk) for entry in (u, log_decay, b, c))
    u = u.permute(0, 1, 3, 2, 4).unflatten(2, (groups, -1))  # [B, K, G, R, L, P]
    b, c = b.transpose(2, 3), c.transpose(2, 3)  # [B, K, G, L, W]
    total = log_decay.double().cumsum(2).transpose(2, 3).unflatten(2, (groups, -1))

    scores = (c @ b.transpose(-1, -2)).unsqueeze(3)
    inside = (scores * _decays(total, u.dtype)) @ u
    since_start = torch.exp(total).to(u.dtype).unsqueeze(-1)
    until_end = torch.exp(total[..., -1:] - total).to(u.dtype).unsqueeze(-1)
    pushed = (u * until_end).transpose(-1, -2).flatten(3, 4) @ b  # [B, K, G, R * P, W]

    kept = since_start[..., -1, :].flatten(2, 3).unsqueeze(-1)
    added = pushed.flatten(2, 3).view(*kept.shape[:3], *state.shape[2:])
    ends = linear_scan(kept, added, state)
    starts = torch.cat([state.unsqueeze(1), ends[:, :-1]], dim=1).view_as(pushed)
    carried = (c @ starts.transpose(-1, -2)).unflatten(-1, u.shape[3::2]).transpose(3, 4)
    y = (inside + since_start * carried).flatten(2, 3).transpose(2, 3)
    return y.flatten(1, 2)[:, :tokens], ends[:, -1].clone()


def _chunks(entry: Tensor, chunk: int) -> Tensor:
    """[B, T, ...] -> [B, K, chunk, ...], zeros behind the last token."""
    missing = -entry.shape[1] % chunk
    padding = (0, 0) * (entry.dim() - 2) + (0, missing)
    return F.pad(entry, padding).unflatten(1, (-1, chunk))


def _decays(total: Tensor, dtype: torch.dtype) -> Tensor:
    """exp(total_i - total_j) for j <= i, else 0: [..., L] -> [..., L, L]."""
    difference = (total.unsqueeze(-1) - total.unsqueeze(-2)).to(dtype)
    later = torch.ones(total.shape[-1:] * 2, dtype=torch.bool, device=total.device).triu(1)
    return difference.masked_fill(later, -torch.inf).exp()
