"""The Triton backend: an autograd function around the scan's kernels, and the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from kssm.ops.kssm_scan.cuda_scan import backward_by_cuda, forward_by_cuda
from kssm.ops.kssm_scan.gates import ScanParameters
from kssm.ops.kssm_scan.kernel_choice import Tunings, choose, possible
from kssm.ops.kssm_scan.kernel_cut import Tuning
from kssm.ops.kssm_scan.kernel_launch import (
    Scan,
    backward,
    evenly_spaced,
    exact,
    forward,
)
from kssm.ops.kssm_scan.kernel_step import step_kernel
from kssm.ops.launch import on_device

_STEP_BLOCK = 256


def scan_triton(
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
    offsets: Tensor | None = None,
    tuning: Tunings | None = None,
) -> tuple[Tensor, Tensor]:
    """Shapes, results and gradients as ``kssm_scan``, with ``offsets`` for its ``cu_seqlens``.

    ``tuning`` is for (forward, backward); None = the one chosen for the device and the shape.
    """
    tensors = (alpha, omega, dt, x, b_re, b_im, *parameters)
    wanted = torch.is_grad_enabled() and any(
        t.requires_grad for t in (*tensors, initial_state) if t is not None
    )
    if token_dt is not None:
        token_dt = token_dt.float().contiguous()
    if lengths is not None:
        lengths = lengths.contiguous()
    if offsets is not None:
        offsets = offsets.contiguous()
    rows = (lengths, offsets)
    return _TritonScan.apply(wanted, tuning, token_dt, *rows, initial_state, *tensors)


class _TritonScan(torch.autograd.Function):
    """Keeps its inputs and the state before every few tokens for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        wanted: bool,
        tuning: Tunings | None,
        token_dt: Tensor | None,
        lengths: Tensor | None,
        offsets: Tensor | None,
        initial_state: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        scan = _bundle(tensors, token_dt, lengths, offsets, initial_state)
        tuning = possible(scan, tuning or choose(scan))
        keep = tuning[1].keep if wanted else None
        if isinstance(tuning[0], Tuning):
            y, final, kept = forward(scan, tuning[0], keep)
        else:
            y, final, kept = forward_by_cuda(scan, tuning[0], keep)
        if wanted:
            ctx.tuning = tuning[1]
            ctx.save_for_backward(token_dt, lengths, offsets, initial_state, kept, *tensors)
        return y, final

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        token_dt, lengths, offsets, initial_state, kept, *tensors = ctx.saved_tensors
        scan = _bundle(tensors, token_dt, lengths, offsets, initial_state)
        run = backward if isinstance(ctx.tuning, Tuning) else backward_by_cuda
        found = run(scan, kept, gradients[0], gradients[1], ctx.tuning)
        to_b = (value.to(b.dtype) for value, b in zip(found.b, tensors[4:6], strict=True))
        start = None if initial_state is None else found.initial_state.to(initial_state.dtype)
        return (
            None,
            None,
            None,
            None,
            None,
            start,
            *found.tokens,
            *to_b,
            *found.parameters.unbind(0),
        )


def _bundle(
    tensors: Sequence[Tensor],
    token_dt: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
    initial_state: Tensor | None,
) -> Scan:
    """The kernels' view of the arguments; per-channel and per-row tensors are small: copied."""
    start = None if initial_state is None else initial_state.contiguous()
    parameters = [p.contiguous() for p in tensors[6:]]
    return Scan(tensors[:6], parameters, token_dt, lengths, offsets, start)


def step_triton_(
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
    """``kssm_step_`` in one launch."""
    rows, channels = x.shape
    given = (alpha, omega, dt, x, b_re, b_im)
    inputs, strides = evenly_spaced([t.unsqueeze(0) for t in given])
    block = min(_STEP_BLOCK, triton.next_power_of_2(channels))
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    with on_device(x.device):
        step_kernel[(rows * triton.cdiv(channels, block),)](
            *inputs,
            None if token_dt is None else token_dt.contiguous(),
            *(p.contiguous() for p in parameters),
            state,
            slots.contiguous(),
            y,
            ROWS=strides,
            D=channels,
            WIDTH=channels // b_re.shape[-1],
            BLOCK_D=block,
            EXACT=exact(inputs),
            num_warps=max(1, block // 64),
        )
    return y
