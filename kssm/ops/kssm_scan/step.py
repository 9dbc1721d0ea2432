"""One token for each of many rows, on state that lives in an arena and is changed in place."""

from __future__ import annotations

import torch
from torch import Tensor

from kssm.ops.kssm_scan.gates import ScanParameters, compute_dtype, compute_gates, drive


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
    h = torch.view_as_complex(old.to(dtype).contiguous())
    new = torch.where(hold[:, None], h, h + gates.gain * (drive(u, re, im) - gates.rate * h))
    _write(state, slots, hold, old, new)
    y = parameters.c_re * new.real + parameters.c_im * new.imag
    return y.masked_fill((slots < 0)[:, None], 0).to(x.dtype)


def _write(state: Tensor, slots: Tensor, hold: Tensor, old: Tensor, new: Tensor) -> None:
    """Store the finite new pairs of the rows that advance; everything else keeps its bits."""
    pairs = torch.view_as_real(new).to(state.dtype)
    finite = pairs.isfinite().all(-1, keepdim=True)
    advancing = ~hold
    state[slots[advancing]] = torch.where(finite, pairs, old)[advancing]
