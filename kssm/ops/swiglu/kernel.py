"""Triton kernels of the gated product and its gradient."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kssm.ops.kernel_maths import sigmoid
from kssm.ops.launch import blocks_of, flat_rows, on_device

_BLOCK_R, _BLOCK_C = 8, 256


@triton.jit
def cells(rows, H: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """This program's rows [BLOCK_R, 1], columns [1, BLOCK_C] and which of them exist."""
    across: tl.constexpr = (H + BLOCK_C - 1) // BLOCK_C
    program = tl.program_id(0)
    r = (program // across).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    c = (program % across) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    return r, c, (r < rows) & (c < H)


@triton.jit
def forward_kernel(
    x_ptr, y_ptr, x_row, rows, H: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    r, c, mask = cells(rows, H, BLOCK_R, BLOCK_C)
    gate = tl.load(x_ptr + r * x_row + c, mask=mask, other=0.0).to(tl.float32)
    value = tl.load(x_ptr + r * x_row + H + c, mask=mask, other=0.0).to(tl.float32)
    y = gate * sigmoid(gate) * value
    tl.store(y_ptr + r * H + c, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def backward_kernel(
    x_ptr, dy_ptr, dx_ptr, x_row, dy_row, rows,
    H: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    r, c, mask = cells(rows, H, BLOCK_R, BLOCK_C)
    gate = tl.load(x_ptr + r * x_row + c, mask=mask, other=0.0).to(tl.float32)
    value = tl.load(x_ptr + r * x_row + H + c, mask=mask, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + r * dy_row + c, mask=mask, other=0.0).to(tl.float32)
    s = sigmoid(gate)
    at = dx_ptr + r * (2 * H) + c
    dgate = dy * value * s * (1.0 + gate * (1.0 - s))
    tl.store(at, dgate.to(dx_ptr.dtype.element_ty), mask=mask)
    tl.store(at + H, (dy * gate * s).to(dx_ptr.dtype.element_ty), mask=mask)


def forward(x: Tensor) -> Tensor:
    """x [..., 2 H] -> [..., H]."""
    flat, hidden = flat_rows(x), x.shape[-1] // 2
    y = torch.empty(*x.shape[:-1], hidden, dtype=x.dtype, device=x.device)
    with on_device(x.device):
        forward_kernel[_grid(len(flat), hidden)](
            flat, y, flat.stride(0), len(flat), H=hidden, BLOCK_R=_BLOCK_R, BLOCK_C=_BLOCK_C
        )
    return y


def backward(x: Tensor, dy: Tensor) -> Tensor:
    """The gradient of x."""
    flat, hidden, incoming = flat_rows(x), x.shape[-1] // 2, flat_rows(dy)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    with on_device(x.device):
        backward_kernel[_grid(len(flat), hidden)](
            flat, incoming, dx, flat.stride(0), incoming.stride(0), len(flat),
            H=hidden, BLOCK_R=_BLOCK_R, BLOCK_C=_BLOCK_C,
        )  # fmt: skip
    return dx


def _grid(rows: int, hidden: int) -> tuple[int]:
    return (blocks_of(rows, _BLOCK_R) * blocks_of(hidden, _BLOCK_C),)
