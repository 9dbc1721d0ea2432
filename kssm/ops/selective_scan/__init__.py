"""The selective scan of Mamba (Gu and Dao, "Mamba", 2023, section 3).

Triton kernels in fp32 on a GPU, plain PyTorch elsewhere and as the reference.
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
from kssm.ops.pieces import in_pieces, piece_length

__all__ = ["selective_scan", "selective_scan_torch", "selective_step", "selective_step_"]


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
    return outside_graph(_scan)(x, step, a, b, c, state)


def _scan(*given: Tensor) -> tuple[Tensor, Tensor]:
    """Choose and run; Triton is imported only when it is asked for."""
    if not runs_triton(given[0]):
        return selective_scan_torch(*given)
    module = importlib.import_module("kssm.ops.selective_scan.kernel_launch")
    with torch.autocast("cuda", enabled=False):
        return module.selective_scan_triton(*given)


def selective_scan_torch(
    x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """``selective_scan`` in plain PyTorch: the reference and the fallback."""
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


def selective_step_(
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
    """One token of ``selective_scan`` for each of N rows, with what surrounds it in Mamba.

    Args:
        x, gate: [N, D].
        raw_step: [N, D]; the step is dt softplus(raw_step + bias).
        bias, skip: [D].
        a_log: [D, S]; a = -exp(a_log).
        b, c: [N, S].
        states: arena [rows, D, S], changed in place.
        slots: [N] rows of the arena; only scratch rows may occur more than once.
        dt: [N] or None = 1.

    Returns:
        (c . h + skip x) silu(gate) [N, D] in the arena's dtype. New state that is not finite is
        not kept.
    """
    if runs_triton(states):
        kernel = importlib.import_module("kssm.ops.selective_scan.kernel_step")
        step_kernel = outside_graph(kernel.selective_step_triton_)
        return step_kernel(x, raw_step, bias, a_log, b, c, skip, gate, states, slots, dt)
    wide = states.dtype
    step = F.softplus(raw_step.to(wide) + bias)
    if dt is not None:
        step = step * dt.unsqueeze(-1).to(wide)
    old, x = states[slots], x.to(wide)
    y, new = selective_step(x, step, -torch.exp(a_log.to(wide)), b.to(wide), c.to(wide), old)
    states[slots] = kept_finite(new, old)
    return (y + skip * x) * F.silu(gate.to(wide))
