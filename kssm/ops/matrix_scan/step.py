"""One token for each of many rows, on state that lives in an arena and is changed in place."""

from __future__ import annotations

import torch
from torch import Tensor

from kssm.ops.matrix_scan.gates import MatrixParameters, compute_dtype, compute_gates, hold
from kssm.ops.matrix_scan.reference import advance


def step_torch_(
    x: Tensor,
    b: Tensor,
    c: Tensor,
    alpha: Tensor,
    dt: Tensor,
    omega: Tensor,
    parameters: MatrixParameters,
    state: Tensor,
    slots: Tensor,
    token_dt: Tensor | None = None,
) -> Tensor:
    """Plain-PyTorch ``matrix_step_``."""
    wide, kind = compute_dtype(x.dtype), x.dtype
    advancing = slots >= 0
    if token_dt is not None:
        advancing = advancing & (token_dt != 0)
    x, b, c, alpha, dt, omega = (t.to(wide) for t in (x, b, c, alpha, dt, omega))
    factor = None if token_dt is None else token_dt.to(wide)
    gates = hold(compute_gates(alpha, dt, omega, factor, parameters), advancing)
    held = ~advancing[:, None, None]
    old = state[slots.clamp(min=0)]
    h = torch.view_as_complex(old.to(wide))
    y, new = advance(x.masked_fill(held, 0), b.masked_fill(held, 0), c, gates, h)
    pairs = torch.view_as_real(new).to(state.dtype)
    finite = pairs.isfinite().all(-1).all(-1)[..., None, None]
    state[slots[advancing]] = torch.where(finite, pairs, old)[advancing]
    return y.masked_fill((slots < 0)[:, None, None], 0).to(kind)
