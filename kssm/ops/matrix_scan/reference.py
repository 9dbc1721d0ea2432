"""The recurrence token by token: what every other path must equal."""

from __future__ import annotations

import torch
from torch import Tensor

from kssm.ops.matrix_scan.gates import Gates, MatrixParameters, compute_dtype, compute_gates, hold


def scan_reference(
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
    wide = compute_dtype(x.dtype)
    kind, batch, tokens = x.dtype, x.shape[0], x.shape[1]
    x, b, c, alpha, dt, omega = (t.to(wide) for t in (x, b, c, alpha, dt, omega))
    factor = None if token_dt is None else token_dt.to(wide)
    gates = compute_gates(alpha, dt, omega, factor, parameters)
    valid = torch.ones(batch, tokens, dtype=torch.bool, device=x.device)
    if lengths is not None:
        valid = torch.arange(tokens, device=x.device) < lengths.unsqueeze(1)
        gates = hold(gates, valid)
        x = x.masked_fill(~valid[..., None, None], 0)
    if initial_state is None:
        initial_state = x.new_zeros(batch, *x.shape[2:], omega.shape[-1], 2)
    h = torch.view_as_complex(initial_state.to(wide).contiguous())
    outputs: list[Tensor] = []
    for t in range(tokens):
        now = Gates(*(gate[:, t] for gate in gates))
        y, h = advance(x[:, t], b[:, t], c[:, t], now, h)
        outputs.append(y)
    y = torch.stack(outputs, dim=1).masked_fill(~valid[..., None, None], 0)
    return y.to(kind), torch.view_as_real(h)


def advance(x: Tensor, b: Tensor, c: Tensor, gates: Gates, h: Tensor) -> tuple[Tensor, Tensor]:
    """One token of rows: x [N, H, P], b and c [N, G, 2 pairs], complex h [N, H, P, pairs]."""
    per_group = x.shape[1] // b.shape[1]
    b, c = (torch.complex(*t.chunk(2, dim=-1)) for t in (b, c))
    half = gates.half_angle
    turn = torch.polar(torch.ones_like(half), -2 * half)
    b = b * torch.polar(torch.cos(half), -half)
    b, c, turn = (t.repeat_interleave(per_group, dim=1).unsqueeze(-2) for t in (b, c, turn))
    decay = torch.exp(gates.log_decay)[..., None, None]
    h = decay * turn * h + (gates.gain.unsqueeze(-1) * x).unsqueeze(-1) * b
    return (c.conj() * h).real.sum(-1), h
