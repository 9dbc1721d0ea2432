"""The recurrence token by token: the yardstick for every other path (float64-testable)."""

from __future__ import annotations

import torch
from torch import Tensor

from kssm.ops.kssm_scan.gates import (
    ScanParameters,
    compute_dtype,
    compute_gates,
    drive,
    hold_mask,
    past_end,
)


def scan_reference(
    alpha: Tensor,
    omega: Tensor,
    dt: Tensor,
    x: Tensor,
    b_re: Tensor,
    b_im: Tensor,
    parameters: ScanParameters,
    token_dt: Tensor | None = None,
    initial_state: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Shapes, results and gradients as ``kssm_scan``; T sequential steps under plain autograd."""
    dtype = compute_dtype(x.dtype)
    batch, tokens, channels = x.shape
    hold = hold_mask(tokens, token_dt, lengths)
    inputs = [t.to(dtype) for t in (alpha, omega, dt, x, b_re, b_im)]
    if hold is not None:
        inputs = [t.masked_fill(hold[..., None], 0) for t in inputs]
    a, w, d, u, re, im = inputs
    factor = None if token_dt is None else token_dt.to(dtype)[..., None]
    gates = compute_gates(a, w, d, factor, parameters)
    source, gain, rate = drive(u, re, im), gates.gain, gates.rate
    h = _initial(initial_state, batch, channels, source)
    history: list[Tensor] = []
    for t in range(tokens):
        new = h + gain[:, t] * (source[:, t] - rate[:, t] * h)
        h = new if hold is None else torch.where(hold[:, t, None], h, new)
        history.append(h)
    states = torch.stack(history, dim=1)
    y = parameters.c_re * states.real + parameters.c_im * states.imag
    if lengths is not None:
        y = y.masked_fill(past_end(tokens, lengths)[..., None], 0)
    return y.to(x.dtype), torch.view_as_real(h)


def _initial(state: Tensor | None, batch: int, channels: int, like: Tensor) -> Tensor:
    """[B, D] complex start: the given pairs, or zeros."""
    if state is None:
        return like.new_zeros(batch, channels)
    return torch.view_as_complex(state.to(like.real.dtype).contiguous())
