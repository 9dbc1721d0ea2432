"""State-space duality on a GPU: the matrix-state scan's chunk kernels, without rotations."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kssm.ops.launch import on_device
from kssm.ops.matrix_scan.kernel_launch import Chunked, forward
from kssm.ops.matrix_scan.kernel_launch_backward import backward
from kssm.ops.matrix_scan.kernel_plan import tuned

_SIZES = (16, 32, 64)
_STATES = (16, 32, 64, 128)


def fits(x: Tensor, b: Tensor) -> bool:
    """Whether heads and states make tiles of matrix products."""
    return x.shape[-1] in _SIZES and b.shape[-1] in _STATES


def ssd_scan_triton(
    x: Tensor,
    step: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    state: Tensor,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Shapes and results as ``ssd_scan``; all tensors fp32, products of factors in ``dtype``."""
    u = (x * step.unsqueeze(-1)).to(dtype)
    log_decay = step.double() * a.double()
    y, final = _Ssd.apply(u, log_decay, b.to(dtype), c.to(dtype), state)
    return y.to(x.dtype), final


class _Ssd(torch.autograd.Function):
    """Of inputs with their steps: u [B, T, H, P], log_decay [B, T, H] in fp64."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> tuple[Tensor, Tensor]:
        u, log_decay, b, c, state = given
        chunk = tuned(u.dtype, u.shape[-1], b.shape[-1]).chunk
        total = _since_start(log_decay, chunk).to(_gates_dtype(u.dtype))
        scan = _chunked(u, total, b, c, state)
        with on_device(u.device):
            y, final, starts = forward(scan, rounded=not any(ctx.needs_input_grad))
        ctx.save_for_backward(scan.x, total, scan.b, scan.c, state, starts)
        ctx.set_materialize_grads(False)
        return y, final.transpose(2, 3).contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        u, total, b, c, state, starts = ctx.saved_tensors
        dy, dfinal = gradients
        scan = _chunked(u, total, b, c, state)
        dy = torch.zeros_like(u) if dy is None else dy
        behind = None if dfinal is None else dfinal.transpose(2, 3).contiguous()
        with on_device(u.device):
            found = backward(scan, starts, dy, behind, turning=False, direct=True)
        d_log = found.decay[:, :, : u.shape[1]].transpose(1, 2).double()
        db, dc = (t.sum(0).to(b.dtype) for t in (found.b, found.c))
        return found.x, d_log, db, dc, found.initial.transpose(2, 3)


def _gates_dtype(dtype: torch.dtype) -> torch.dtype:
    """After a strong decay, sums in fp32 blur the small differences behind it."""
    return torch.float64 if dtype == torch.float32 else torch.float32


def _since_start(log_decay: Tensor, chunk: int) -> Tensor:
    """[B, T, H] -> [B, H, K chunk]: the log2 decay since the start of the token's chunk."""
    missing = -log_decay.shape[1] % chunk
    chunks = F.pad(log_decay.transpose(1, 2), (0, missing)).unflatten(2, (-1, chunk))
    return (chunks.cumsum(-1) / math.log(2)).flatten(2)


def _chunked(u: Tensor, total: Tensor, b: Tensor, c: Tensor, state: Tensor) -> Chunked:
    """The chunk kernels' view: all gains are 1."""
    tuning = tuned(u.dtype, u.shape[-1], b.shape[-1])
    start = state.transpose(2, 3).contiguous()
    u, b, c = (t.contiguous() for t in (u, b, c))
    return Chunked(u, b, c, total, total, None, start, tuning)
