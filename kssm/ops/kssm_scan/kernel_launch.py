"""How the Triton kernels are cut into programs and launched."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from kssm.ops.kssm_scan.kernel_adjoint import backward_summary_kernel
from kssm.ops.kssm_scan.kernel_backward import backward_kernel
from kssm.ops.kssm_scan.kernel_forward import forward_kernel, forward_summary_kernel


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
    def plan(cls, shape: Sequence[int], groups: int, tuning: Tuning, device: torch.device) -> Cut:
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


class Scan(NamedTuple):
    """Everything both passes read: token inputs, parameters, and what is optional."""

    inputs: Sequence[Tensor]  # alpha, omega, dt, x [B, T, D], b_re, b_im [B, T, G]
    parameters: Sequence[Tensor]  # six [D]
    token_dt: Tensor | None
    lengths: Tensor | None
    initial_state: Tensor | None

    @property
    def x(self) -> Tensor:
        return self.inputs[3]

    @property
    def groups(self) -> int:
        return self.inputs[4].shape[-1]

    @property
    def factor_row(self) -> tuple[int, ...]:
        """Spacing of token_dt, when there is one."""
        return () if self.token_dt is None else (1,)

    def options(self, cut: Cut, tuning: Tuning) -> dict[str, int | bool]:
        """Compile-time arguments that every kernel takes."""
        return {
            "GROUPS": self.groups,
            "WIDTH": self.x.shape[-1] // self.groups,
            "BLOCK_D": cut.block_d,
            "UNROLL": tuning.unroll,
            "EXACT": exact(self.inputs),
            "num_warps": 1,
        }

    def summary(self, cut: Cut) -> Tensor | None:
        """Room for the chunks' summaries, when there are chunks."""
        if cut.chunks == 1:
            return None
        batch, _, channels = self.x.shape
        return self.x.new_empty(batch, cut.chunks, channels, 4, dtype=torch.float32)


def forward(scan: Scan, tuning: Tuning, keep: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """(y, last state, the states for the backward pass when they are to be kept)."""
    x = scan.x
    batch, tokens, channels = x.shape
    cut = Cut.plan(x.shape, scan.groups, tuning, x.device)
    inputs, rows = evenly_spaced(scan.inputs)
    options = scan.options(cut, tuning)
    rows = (*rows, *scan.factor_row)
    y = _output(x, scan.lengths)
    final = x.new_empty(batch, channels, 2, dtype=torch.float32)
    packed = x.dtype != torch.float32
    h_rows = 1 if packed else 2
    states = None
    if keep:
        kind = torch.int32 if packed else torch.float32
        states = x.new_empty(batch * tokens + 1, h_rows * channels, dtype=kind)
    summary = scan.summary(cut)
    sizes = (tokens, cut.chunks, cut.chunk_len, 1)
    grid = (batch * cut.chunks * cut.blocks,)
    optional = (scan.token_dt, scan.lengths)
    with on_device(x.device):
        if summary is not None:
            forward_summary_kernel[grid](
                *inputs, *optional, *scan.parameters[:4], summary, *sizes, ROWS=rows, **options
            )
        forward_kernel[grid](
            *inputs, *optional, *scan.parameters, scan.initial_state, summary,
            y, None if states is None else states[1:], final, *sizes,
            ROWS=rows, H_ROWS=h_rows, **options,
        )  # fmt: skip
    return y, final, states


class Gradients(NamedTuple):
    """The backward pass's results, in fp32 where they are sums."""

    tokens: list[Tensor]  # of alpha, omega, dt, x, in their dtypes
    b: list[Tensor]  # of b_re, b_im: [B, T, G]
    parameters: Tensor  # [6, D]
    initial_state: Tensor  # [B, D, 2]


def backward(scan: Scan, states: Tensor, dy: Tensor, dfinal: Tensor, tuning: Tuning) -> Gradients:
    """Gradients from those of y [B, T, D] and of the last state [B, D, 2]."""
    x = scan.x
    batch, tokens, channels = x.shape
    cut = Cut.plan(x.shape, scan.groups, tuning, x.device)
    inputs, rows = evenly_spaced([*scan.inputs, dy])
    options = scan.options(cut, tuning)
    state_rows = (channels,) if states.dtype == torch.int32 else (2 * channels, 2 * channels)
    to_tokens = [_output(t, scan.lengths) for t in scan.inputs[:4]]
    partial = (batch, tokens, scan.groups, cut.blocks // scan.groups)
    to_b = [_output(x, scan.lengths, partial, torch.float32) for _ in range(2)]
    to_parameters = x.new_empty(batch, cut.chunks, 6, channels, dtype=torch.float32)
    to_initial = x.new_empty(batch, channels, 2, dtype=torch.float32)
    summary = scan.summary(cut)
    sizes = (tokens, cut.chunks, cut.chunk_len, 1)
    grid = (batch * cut.chunks * cut.blocks,)
    optional = (scan.token_dt, scan.lengths)
    with on_device(x.device):
        if summary is not None:
            backward_summary_kernel[grid](
                *inputs[:3], inputs[6], *optional, *scan.parameters, summary, *sizes,
                ROWS=_negative(*rows[:3], rows[6], *scan.factor_row), **options,
            )  # fmt: skip
        backward_kernel[grid](
            *inputs[:6], *optional, *scan.parameters, scan.initial_state, states,
            inputs[6], dfinal.contiguous(), summary,
            *to_tokens, *to_b, to_parameters, to_initial, *sizes,
            ROWS=_negative(*rows[:4], rows[6], *state_rows, *rows[4:6], *scan.factor_row),
            **options,
        )  # fmt: skip
    return Gradients(to_tokens, [t.sum(-1) for t in to_b], to_parameters.sum((0, 1)), to_initial)


def evenly_spaced(tensors: Sequence[Tensor]) -> tuple[list[Tensor], tuple[int, ...]]:
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


def exact(inputs: Sequence[Tensor]) -> bool:
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


def on_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device: make it the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
