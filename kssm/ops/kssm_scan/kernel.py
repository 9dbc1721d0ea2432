"""Launching the Triton kernels: how the work is cut, and the autograd function around them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from kssm.ops.kssm_scan.gates import ScanParameters
from kssm.ops.kssm_scan.kernel_backward import backward_kernel, backward_summary_kernel
from kssm.ops.kssm_scan.kernel_forward import forward_kernel, forward_summary_kernel
from kssm.ops.kssm_scan.kernel_step import step_kernel

_STEP_BLOCK = 256


@dataclass(frozen=True)
class Tuning:
    """How a pass is cut into programs of one warp.

    A sequence is cut in time chunks only when there are fewer than ``enough`` programs a
    multiprocessor without that: it costs a second reading of the inputs. Then there are ``wanted``.
    """

    block_d: int = 32
    unroll: int = 8
    enough: int = 4
    wanted: int = 16
    shortest: int = 64


FORWARD = Tuning()
BACKWARD = Tuning(unroll=4)


@dataclass(frozen=True)
class Cut:
    """One pass's grid: ``blocks`` of ``block_d`` channels times ``chunks`` of ``chunk_len``."""

    block_d: int
    blocks: int
    chunks: int
    chunk_len: int

    @classmethod
    def plan(
        cls, shape: Sequence[int], groups: int, tuning: Tuning, device: torch.device
    ) -> Cut:
        """The cut for tokens [B, T, D] in ``groups`` groups."""
        batch, tokens, channels = shape
        width = channels // groups
        block_d = min(tuning.block_d, triton.next_power_of_2(width))
        blocks = groups * triton.cdiv(width, block_d)
        processors = _processors(device)
        chunks = 1
        if batch * blocks < tuning.enough * processors:
            chunks = triton.cdiv(tuning.wanted * processors, batch * blocks)
        chunk_len = max(triton.cdiv(tokens, chunks), tuning.shortest)
        chunk_len = triton.cdiv(chunk_len, tuning.unroll) * tuning.unroll
        return cls(block_d, blocks, triton.cdiv(tokens, chunk_len), chunk_len)


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
    tuning: tuple[Tuning, Tuning] = (FORWARD, BACKWARD),
) -> tuple[Tensor, Tensor]:
    """Shapes, results and gradients as ``kssm_scan``; ``tuning`` is for (forward, backward)."""
    tensors = (alpha, omega, dt, x, b_re, b_im, *parameters)
    wanted = torch.is_grad_enabled() and any(
        t.requires_grad for t in (*tensors, initial_state) if t is not None
    )
    if token_dt is not None:
        token_dt = token_dt.float().contiguous()
    if lengths is not None:
        lengths = lengths.contiguous()
    return _TritonScan.apply(wanted, tuning, token_dt, lengths, initial_state, *tensors)


class _TritonScan(torch.autograd.Function):
    """Keeps its inputs and the states (bf16 pairs for 16-bit inputs) for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        wanted: bool,
        tuning: tuple[Tuning, Tuning],
        token_dt: Tensor | None,
        lengths: Tensor | None,
        initial_state: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        inputs, parameters = tensors[:6], [p.contiguous() for p in tensors[6:]]
        x = inputs[3]
        batch, tokens, channels = x.shape
        groups = inputs[4].shape[-1]
        cut = Cut.plan(x.shape, groups, tuning[0], x.device)
        inputs, rows = _with_rows(inputs)
        if token_dt is not None:
            rows = (*rows, 1)
        shape = dict(
            ROWS=rows,
            GROUPS=groups,
            WIDTH=channels // groups,
            BLOCK_D=cut.block_d,
            UNROLL=tuning[0].unroll,
            EXACT=_exact(inputs),
            num_warps=1,
        )
        grid = (batch * cut.chunks * cut.blocks,)
        start = None if initial_state is None else initial_state.contiguous()
        y = _output(x, lengths)
        final = x.new_empty(batch, channels, 2, dtype=torch.float32)
        packed = x.dtype != torch.float32
        h_rows = 1 if packed else 2
        states = None
        if wanted:
            kind = torch.int32 if packed else torch.float32
            states = x.new_empty(batch * tokens + 1, h_rows * channels, dtype=kind)
        sizes = (tokens, cut.chunks, cut.chunk_len)
        with _on(x.device):
            summary = None
            if cut.chunks > 1:
                summary = x.new_empty(batch, cut.chunks, channels, 4, dtype=torch.float32)
                forward_summary_kernel[grid](
                    *inputs, token_dt, lengths, *parameters[:4], summary, *sizes, **shape
                )
            forward_kernel[grid](
                *inputs, token_dt, lengths, *parameters, start, summary, y,
                None if states is None else states[1:], final, *sizes, H_ROWS=h_rows, **shape,
            )  # fmt: skip
        if wanted:
            ctx.tuning = tuning[1]
            ctx.save_for_backward(token_dt, lengths, initial_state, states, *tensors)
        return y, final

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        token_dt, lengths, initial_state, states, *tensors = ctx.saved_tensors
        inputs, parameters = tensors[:6], [p.contiguous() for p in tensors[6:]]
        tuning = ctx.tuning
        x = inputs[3]
        batch, tokens, channels = x.shape
        groups = inputs[4].shape[-1]
        cut = Cut.plan(x.shape, groups, tuning, x.device)
        (alpha, omega, dt, x, b_re, b_im, dy), rows = _with_rows([*inputs, gradients[0]])
        factor_row = () if token_dt is None else (1,)
        packed = states.dtype == torch.int32
        state_rows = (channels,) if packed else (2 * channels, 2 * channels)
        shape = dict(
            GROUPS=groups,
            WIDTH=channels // groups,
            BLOCK_D=cut.block_d,
            UNROLL=tuning.unroll,
            EXACT=_exact(inputs),
            num_warps=1,
        )
        grid = (batch * cut.chunks * cut.blocks,)
        start = None if initial_state is None else initial_state.contiguous()
        found = [_output(t, lengths) for t in inputs[:4]]
        to_b = [
            _output(x, lengths, (batch, tokens, groups, cut.blocks // groups), torch.float32)
            for _ in range(2)
        ]
        to_parameters = x.new_empty(batch, cut.chunks, 6, channels, dtype=torch.float32)
        to_start = x.new_empty(batch, channels, 2, dtype=torch.float32)
        sizes = (tokens, cut.chunks, cut.chunk_len)
        with _on(x.device):
            summary = None
            if cut.chunks > 1:
                summary = x.new_empty(batch, cut.chunks, channels, 4, dtype=torch.float32)
                backward_summary_kernel[grid](
                    alpha, omega, dt, dy, token_dt, lengths, *parameters, summary, *sizes,
                    ROWS=_negative(*rows[:3], rows[6], *factor_row), **shape,
                )  # fmt: skip
            backward_kernel[grid](
                alpha, omega, dt, x, b_re, b_im, token_dt, lengths, *parameters, start, states,
                dy, gradients[1].contiguous(), summary, *found, *to_b, to_parameters, to_start,
                *sizes, ROWS=_negative(*rows[:4], rows[6], *state_rows, *rows[4:6], *factor_row),
                **shape,
            )  # fmt: skip
        to_inputs = [*found, *(t.sum(-1).to(b.dtype) for t, b in zip(to_b, inputs[4:], strict=True))]
        start_gradient = None if initial_state is None else to_start.to(initial_state.dtype)
        sums = to_parameters.sum((0, 1)).unbind(0)
        return None, None, None, None, start_gradient, *to_inputs, *sums


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
    inputs, strides = _with_rows([t.unsqueeze(0) for t in given])
    block = min(_STEP_BLOCK, triton.next_power_of_2(channels))
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    with _on(x.device):
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
            EXACT=_exact(inputs),
            num_warps=max(1, block // 64),
        )
    return y


def _with_rows(tensors: Sequence[Tensor]) -> tuple[list[Tensor], tuple[int, ...]]:
    """Tensors [B, T, N] whose tokens are evenly spaced in memory, and that spacing.

    Slices of a wider projection qualify as they are; anything else is copied.
    """
    kept: list[Tensor] = []
    rows: list[int] = []
    for tensor in tensors:
        batch, tokens, width = tensor.shape
        even = batch == 1 or tensor.stride(0) == tokens * tensor.stride(1)
        if tokens > 1 and even and (width == 1 or tensor.stride(2) == 1) and tensor.stride(1) > 0:
            kept.append(tensor)
            rows.append(tensor.stride(1))
        else:
            kept.append(tensor.contiguous())
            rows.append(width)
    return kept, tuple(rows)


def _negative(*rows: int) -> tuple[int, ...]:
    return tuple(-row for row in rows)


def _exact(inputs: Sequence[Tensor]) -> bool:
    """Whether softplus is worth fp32 accuracy: 16-bit pre-activations do not carry it."""
    return torch.float32 in (inputs[0].dtype, inputs[2].dtype)


def _output(
    like: Tensor,
    lengths: Tensor | None,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Memory for a kernel's output; zeros when rows end early, for the kernels stop there."""
    make = like.new_empty if lengths is None else like.new_zeros
    return make(tuple(like.shape if shape is None else shape), dtype=dtype or like.dtype)


def _processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; the interpreter counts as one."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device: make it the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
