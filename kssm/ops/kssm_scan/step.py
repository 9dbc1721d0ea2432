"""One token for each of many rows, on state that lives in an arena and is changed in place."""

from __future__ import annotations

import torch
from torch import Tensor

from kssm.ops.kssm_scan.gates import (
    Gates,
    ScanParameters,
    compute_dtype,
    compute_gates,
    expand_groups,
)


def step_torch_(
    alpha: Tensor,
    omega: Tensor,
    dt: Tensor,
    x: Tensor,
    b_re: Tensor,
    b_im: Tensor,
    parameters: ScanParameters,
    state: Tensor,
    slots: Tensor,
    token_dt: Tensor | None = None,
) -> Tensor:
    """Plain-PyTorch ``kssm_step_``."""
    dtype = compute_dtype(x.dtype)
    hold = slots < 0
    if token_dt is not None:
        hold = hold | (token_dt == 0)
    inputs = [t.to(dtype).masked_fill(hold[:, None], 0) for t in (alpha, omega, dt, x, b_re, b_im)]
    a, w, d, u, re, im = inputs
    factor = None if token_dt is None else token_dt.to(dtype)[:, None]
    gates = compute_gates(a, w, d, factor, parameters)
    old = state[slots.clamp(min=0)]
    new = torch.where(hold[:, None, None], old, _advance(old.to(dtype), u, re, im, gates))
    _write(state, slots, hold, old, new)
    y = parameters.c_re * new[..., 0] + parameters.c_im * new[..., 1]
    return y.masked_fill((slots < 0)[:, None], 0).to(x.dtype)


def _advance(old: Tensor, x: Tensor, b_re: Tensor, b_im: Tensor, gates: Gates) -> Tensor:
    """The pairs after the token, in real arithmetic, which every exporter knows."""
    re, im = old.unbind(-1)
    drive = 0.5 * gates.step * x
    push_re, push_im = (drive * expand_groups(b, x.shape[-1]) for b in (b_re, b_im))
    p, q, s, scale = gates.p, gates.q, gates.excess, 2 * gates.inverse
    new_re = re + scale * (p * push_re + q * push_im - s * re + q * im)
    new_im = im + scale * (p * push_im - q * push_re - s * im - q * re)
    return torch.stack([new_re, new_im], dim=-1)


def _write(state: Tensor, slots: Tensor, hold: Tensor, old: Tensor, new: Tensor) -> None:
    """Store the finite new pairs of the rows that advance; everything else keeps its bits."""
    finite = new.isfinite().all(-1, keepdim=True)
    kept = torch.where(finite, new.to(state.dtype), old)
    if torch.compiler.is_exporting():  # no shape may depend on data, and no row is padding
        state[slots] = kept
        return
    advancing = ~hold
    state[slots[advancing]] = kept[advancing]
