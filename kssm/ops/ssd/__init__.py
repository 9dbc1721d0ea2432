"""State-space duality: Mamba-2's recurrence as matrix products over chunks.

Source: Dao and Gu, "Transformers are SSMs", 2024, section 6. Heads of P channels share one decay;
groups of heads share B and C. Decays and sums are taken in the dtype of the inputs, which the
caller keeps at fp32 or fp64 whatever the model's. On a GPU fp32 inputs take the chunk kernels of
``matrix_scan`` (under autocast their products have bf16 factors); plain PyTorch elsewhere and as
the reference.
"""

from __future__ import annotations

import importlib
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from kssm.ops.eager import outside_graph
from kssm.ops.launch import kept_finite, runs_triton
from kssm.ops.linear_scan import linear_scan
from kssm.ops.pieces import in_pieces

__all__ = ["ssd_scan", "ssd_scan_torch", "ssd_step", "ssd_step_"]

_CHUNK = 64
_PIECE = 16 * _CHUNK
"""Tokens whose weights among each other [chunks, H, chunk, chunk] exist at the same time."""


def ssd_scan(
    x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """h_t = exp(step_t a) h_{t-1} + step_t x_t b_t^T ; y_t = h_t c_t for every head.

    Args:
        x: [B, T, H, P].
        step: [B, T, H]; a token with step 0 leaves the state untouched, bit for bit.
        a: [H], negative.
        b, c: [B, T, G, N]; head h reads group h // (H // G).
        state: [B, H, P, N] before the first token. All of one floating dtype.

    Returns:
        y [B, T, H, P] and the state after the last token.
    """
    return outside_graph(_scan)(x, step, a, b, c, state)


def _scan(*given: Tensor) -> tuple[Tensor, Tensor]:
    """Choose and run; Triton is imported only when it is asked for."""
    if not runs_triton(given[0]):
        return ssd_scan_torch(*given)
    kernel = importlib.import_module("kssm.ops.ssd.kernel")
    dtype = torch.bfloat16 if torch.is_autocast_enabled("cuda") else torch.float32
    with torch.autocast("cuda", enabled=False):
        if not kernel.fits(given[0], given[3]):
            return ssd_scan_torch(*given)
        return kernel.ssd_scan_triton(*given, dtype)


def ssd_scan_torch(
    x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """``ssd_scan`` in plain PyTorch: the reference and the fallback."""
    with torch.autocast(x.device.type, enabled=False):
        return in_pieces(partial(_advance, a), state, (x, step, b, c), _PIECE)


def _advance(
    a: Tensor, state: Tensor, x: Tensor, step: Tensor, b: Tensor, c: Tensor
) -> tuple[Tensor, Tensor]:
    tokens, groups = x.shape[1], b.shape[2]
    u, log_decay = (x * step.unsqueeze(-1)), step * a
    u, log_decay, b, c = (_chunks(entry) for entry in (u, log_decay, b, c))
    u = u.permute(0, 1, 3, 2, 4).unflatten(2, (groups, -1))  # [B, K, G, R, L, P]
    b, c = b.transpose(2, 3), c.transpose(2, 3)  # [B, K, G, L, N]
    total = log_decay.double().cumsum(2).transpose(2, 3)  # [B, K, H, L]
    total = total.unflatten(2, (groups, -1))  # [B, K, G, R, L]

    scores = (c @ b.transpose(-1, -2)).unsqueeze(3)
    inside = (scores * _decays(total, x.dtype)) @ u
    since_start = torch.exp(total).to(x.dtype).unsqueeze(-1)
    until_end = torch.exp(total[..., -1:] - total).to(x.dtype).unsqueeze(-1)
    pushed = (u * until_end).transpose(-1, -2).flatten(3, 4) @ b  # [B, K, G, R * P, N]

    ends = _pass_on(since_start[..., -1, :].flatten(2, 3), pushed, state)
    starts = torch.cat([state.unsqueeze(1), ends[:, :-1]], dim=1).view_as(pushed)
    carried = (c @ starts.transpose(-1, -2)).unflatten(-1, u.shape[3::2]).transpose(3, 4)
    y = (inside + since_start * carried).flatten(2, 3).transpose(2, 3)
    return y.flatten(1, 2)[:, :tokens], ends[:, -1].clone()


def _chunks(entry: Tensor) -> Tensor:
    """[B, T, ...] -> [B, K, L, ...], zeros behind the last token."""
    missing = -entry.shape[1] % _CHUNK
    padding = (0, 0) * (entry.dim() - 2) + (0, missing)
    return F.pad(entry, padding).unflatten(1, (-1, _CHUNK))


def _decays(total: Tensor, dtype: torch.dtype) -> Tensor:
    """exp(total_i - total_j) for j <= i, else 0: [..., L] -> [..., L, L].

    The difference is taken in fp64: after one strong decay, sums in fp32 would blur the small
    differences behind it.
    """
    difference = (total.unsqueeze(-1) - total.unsqueeze(-2)).to(dtype)
    later = torch.ones(total.shape[-1:] * 2, dtype=torch.bool, device=total.device).triu(1)
    return difference.masked_fill(later, -torch.inf).exp()


def _pass_on(decay: Tensor, pushed: Tensor, state: Tensor) -> Tensor:
    """States after each chunk [B, K, H, P, N]: what it adds, and what stays of the one before."""
    value = pushed.flatten(2, 3).view(*decay.shape[:3], *state.shape[2:])
    return linear_scan(decay.unsqueeze(-1), value, state)


def ssd_step(
    x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of ``ssd_scan``: x [N, H, P], step [N, H], b, c [N, G, S], state [N, H, P, S]."""
    heads = x.shape[1] // b.shape[1]
    b, c = (entry.repeat_interleave(heads, dim=1).unsqueeze(-2) for entry in (b, c))
    decay = torch.exp(step * a)[..., None, None]
    state = decay * state + (x * step.unsqueeze(-1)).unsqueeze(-1) * b
    return (state * c).sum(-1), state


def ssd_step_(
    x: Tensor,
    raw_step: Tensor,
    bias: Tensor,
    a_log: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor,
    gate: Tensor,
    states: Tensor,
    slots: Tensor,
    dt: Tensor | None,
) -> Tensor:
    """One token of ``ssd_scan`` for each of N rows, with what surrounds it in Mamba-2.

    Args:
        x, gate: [N, H, P].
        raw_step: [N, H]; the step is dt softplus(raw_step + bias).
        bias, a_log, skip: [H]; a = -exp(a_log).
        b, c: [N, G, S].
        states: arena [rows, H, P, S], changed in place.
        slots: [N] rows of the arena; only scratch rows may occur more than once.
        dt: [N] or None = 1.

    Returns:
        (h c + skip x) silu(gate) [N, H, P] in the arena's dtype. New state that is not finite
        is not kept.
    """
    if runs_triton(states):
        kernel = importlib.import_module("kssm.ops.ssd.kernel_step")
        step_kernel = outside_graph(kernel.ssd_step_triton_)
        return step_kernel(x, raw_step, bias, a_log, b, c, skip, gate, states, slots, dt)
    wide = states.dtype
    step = F.softplus(raw_step.to(wide) + bias)
    if dt is not None:
        step = step * dt.unsqueeze(-1).to(wide)
    old, x = states[slots], x.to(wide)
    y, new = ssd_step(x, step, -torch.exp(a_log.to(wide)), b.to(wide), c.to(wide), old)
    states[slots] = kept_finite(new, old)
    return (y + skip.unsqueeze(-1) * x) * F.silu(gate.to(wide))
