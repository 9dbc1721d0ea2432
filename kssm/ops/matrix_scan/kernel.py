"""The Triton backend: an autograd function around the scan's kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kssm.ops.launch import on_device
from kssm.ops.matrix_scan.gates import MatrixParameters
from kssm.ops.matrix_scan.kernel_launch import Chunked, evenly_spaced, forward
from kssm.ops.matrix_scan.kernel_launch_backward import backward
from kssm.ops.matrix_scan.kernel_launch_gates import (
    Tokens,
    Turned,
    inner_states,
    outer_states,
    turn,
    turn_backward,
)
from kssm.ops.matrix_scan.kernel_plan import Tuning, tuned
from kssm.ops.matrix_scan.kernel_step import step_kernel

_STEP_BLOCK = 32


def scan_triton(
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
    tuning: Tuning | None = None,
) -> tuple[Tensor, Tensor]:
    """Shapes, results and gradients as ``matrix_scan``; ``tuning`` None = by dtype and sizes."""
    tuning = tuning or tuned(x.dtype, x.shape[-1], b.shape[-1])
    token_dt = None if token_dt is None else token_dt.float().contiguous()
    lengths = None if lengths is None else lengths.contiguous()
    return _TritonScan.apply(
        tuning, token_dt, lengths, initial_state, x, b, c, alpha, dt, omega, *parameters
    )


class _TritonScan(torch.autograd.Function):
    """Keeps its inputs, the turned B and C, the gates and the segments' first states."""

    @staticmethod
    def forward(
        ctx: Any,
        tuning: Tuning,
        token_dt: Tensor | None,
        lengths: Tensor | None,
        initial_state: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        x, given = _evened(tensors, token_dt, lengths, tuning)
        with on_device(x.device):
            wanted = any(ctx.needs_input_grad)
            turned = turn(given, rests=wanted)
            scan = _chunked(x, given, turned, initial_state, tuning)
            y, final, starts = forward(scan, rounded=not wanted)
            final = outer_states(final, turned.prefix)
        ctx.tuning = tuning
        ctx.save_for_backward(token_dt, lengths, initial_state, starts, *turned, *tensors)
        ctx.set_materialize_grads(False)
        return y, final

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        token_dt, lengths, initial_state, starts, *others = ctx.saved_tensors
        turned, tensors = Turned(*others[:7]), others[7:]
        x, given = _evened(tensors, token_dt, lengths, ctx.tuning)
        scan = _chunked(x, given, turned, initial_state, ctx.tuning)
        dy, dfinal = gradients
        dy = torch.zeros_like(x) if dy is None else dy
        with on_device(x.device):
            behind = None if dfinal is None else inner_states(dfinal, turned.prefix)
            chunks = backward(scan, starts, dy, behind, turning=True, direct=scan.exact)
            found = turn_backward(given, turned, chunks)
        start = None
        if initial_state is not None:
            start = chunks.initial.unflatten(2, (2, -1)).permute(0, 1, 4, 3, 2)
            start = start.to(initial_state.dtype)
        *tokens, parameters = found
        return None, None, None, start, chunks.x, *tokens, *parameters


def step_triton_(
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
    """``matrix_step_`` in one launch."""
    rows, heads, values = x.shape
    given = (x, b, c, alpha, dt, omega)
    inputs = [evenly_spaced(t.unsqueeze(0)).squeeze(0) for t in given]
    block = min(_STEP_BLOCK, values)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    with on_device(x.device):
        step_kernel[(rows * heads * (values // block),)](
            *inputs,
            None if token_dt is None else token_dt.contiguous(),
            *(p.contiguous() for p in parameters),
            state,
            slots.contiguous(),
            y,
            *(t.stride(0) for t in inputs),
            H=heads,
            G=b.shape[1],
            P=values,
            N=omega.shape[2],
            BLOCK_P=block,
        )
    return y


def _evened(
    tensors: Any, token_dt: Tensor | None, lengths: Tensor | None, tuning: Tuning
) -> tuple[Tensor, Tokens]:
    """x, and the other arguments as the gates' kernels want them."""
    x, *tokens = (evenly_spaced(t) for t in tensors[:6])
    parameters = [p.contiguous() for p in tensors[6:]]
    return x, Tokens(*tokens, parameters, token_dt, lengths, tuning.chunk)


def _chunked(
    x: Tensor, given: Tokens, turned: Turned, initial: Tensor | None, tuning: Tuning
) -> Chunked:
    """What is left for the chunk kernels."""
    start = None
    if initial is not None:
        start = initial.float().permute(0, 1, 4, 3, 2).flatten(2, 3).contiguous()
    return Chunked(x, *turned[:4], given.lengths, start, tuning, turned.b_rest, turned.c_rest)
