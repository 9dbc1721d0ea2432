"""The WKV recurrence of RWKV-6: per head a matrix state with a decay for every key channel.

    y_t = r_t (S_{t-1} + diag(u) k_t^T v_t)
    S_t = diag(exp(log_decay_t)) S_{t-1} + k_t^T v_t

Arithmetic is fp32 for 16-bit and fp32 inputs, fp64 for fp64 inputs. The README beside this file
explains the parallel form.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from kssm.errors import InvalidInputError
from kssm.ops.eager import outside_graph
from kssm.ops.launch import runs_triton
from kssm.ops.wkv6.chunked import wkv6_chunked
from kssm.ops.wkv6.reference import wkv6_reference

__all__ = ["wkv6", "wkv6_reference", "wkv6_step_"]

_Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def wkv6(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    bonus: Tensor,
    initial_state: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over sequences.

    Args:
        r, k, log_decay: [B, T, H, K]; ``log_decay`` <= 0 and finite.
        v: [B, T, H, V].
        bonus: u, [H, K].
        initial_state: [B, H, K, V]; None = zeros.
        lengths: [B]; tokens at or after it leave the state untouched.

    Returns:
        y [B, T, H, V] and the last state [B, H, K, V], both fp32 (fp64 with fp64 inputs).

    Differentiable once in all floating arguments. A token's y is exactly independent of later
    tokens, NaN included.

    Raises:
        InvalidInputError: code ``wrong_shape``.
    """
    _check((r, k, v, log_decay), bonus, dims=4)
    wide = torch.promote_types(r.dtype, torch.float32)
    r, k, v, log_decay = (t.to(wide) for t in (r, k, v, log_decay))
    if lengths is not None:
        k, v, log_decay = (_zero_after(t, lengths) for t in (k, v, log_decay))
    if initial_state is None:
        initial_state = r.new_zeros(r.shape[0], *r.shape[2:], v.shape[-1])
    return outside_graph(_scan)(r, k, v, log_decay, bonus.to(wide), initial_state.to(wide))


def _scan(*given: Tensor) -> tuple[Tensor, Tensor]:
    """Choose and run; Triton is imported only when it is asked for."""
    run = wkv6_chunked
    if runs_triton(given[0]):
        run = importlib.import_module("kssm.ops.wkv6.kernel").wkv6_triton
    with torch.autocast(given[0].device.type, enabled=False):
        return run(*given)


def wkv6_step_(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    bonus: Tensor,
    states: Tensor,
    slots: Tensor,
) -> Tensor:
    """Advance one token for each of N rows, changing their arena slots in place.

    Args:
        r, k, log_decay: [N, H, K]; v: [N, H, V]; bonus: [H, K]; as in ``wkv6``.
        states: arena [S, H, K, V].
        slots: [N] rows of the arena; only scratch rows may occur more than once.

    Returns:
        y [N, H, V] in the arena's dtype. A row whose new state is not finite
        (or sums up to something that is not) keeps its old one.
    """
    _check((r, k, v, log_decay), bonus, dims=3)
    if runs_triton(states):
        kernel = importlib.import_module("kssm.ops.wkv6.kernel_step")
        step_kernel = outside_graph(kernel.wkv6_step_triton_)
        return step_kernel(r, k, v, log_decay, bonus, states, slots)
    r, k, v, log_decay = (t.to(states.dtype) for t in (r, k, v, log_decay))
    old = states.index_select(0, slots)
    own = (r * bonus.to(states.dtype) * k).sum(-1, keepdim=True)
    y = torch.addcmul((r.unsqueeze(-2) @ old).squeeze(-2), own, v)
    new = (old * log_decay.exp().unsqueeze(-1)).addcmul_(k.unsqueeze(-1), v.unsqueeze(-2))
    healthy = torch.isfinite(new.sum((1, 2, 3), keepdim=True))
    states[slots] = torch.where(healthy, new, old)
    return y


def _check(inputs: _Inputs, bonus: Tensor, dims: int) -> None:
    r, k, v, log_decay = inputs
    same = r.shape == k.shape == log_decay.shape and r.shape[:-1] == v.shape[:-1]
    if r.dim() != dims or not same or bonus.shape != r.shape[-2:]:
        shapes = [list(t.shape) for t in (*inputs, bonus)]
        raise InvalidInputError(f"r, k, v, log_decay, bonus: {shapes}", code="wrong_shape")


def _zero_after(tokens: Tensor, lengths: Tensor) -> Tensor:
    steps = torch.arange(tokens.shape[1], device=tokens.device)
    return tokens.masked_fill((steps >= lengths.unsqueeze(1))[..., None, None], 0.0)
