"""Triton kernel of the convolution's step: a program filters all channels of one row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kssm.ops.launch import on_device


@triton.jit
def step_kernel(
    x_ptr, weight_ptr, bias_ptr, windows_ptr, slots_ptr, y_ptr, x_row,
    C: tl.constexpr, KEPT: tl.constexpr, BLOCK_C: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """KEPT is the width of the convolution less one."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK_C)
    mask = c < C
    window = windows_ptr + tl.load(slots_ptr + row).to(tl.int64) * (KEPT * C) + c
    x = tl.load(x_ptr + row * x_row + c, mask=mask, other=0.0).to(tl.float32)
    sick = tl.max(tl.where(tl.abs(x) < float("inf"), 0, 1), axis=0)
    kept = c < tl.where(sick > 0, 0, C)
    y = tl.load(bias_ptr + c, mask=mask, other=0.0).to(tl.float32)
    y += x * tl.load(weight_ptr + KEPT * C + c, mask=mask, other=0.0).to(tl.float32)
    for j in tl.static_range(KEPT):
        tap = tl.load(window + j * C, mask=mask, other=0.0)
        y += tap * tl.load(weight_ptr + j * C + c, mask=mask, other=0.0).to(tl.float32)
        if j > 0:
            tl.store(window + (j - 1) * C, tap, mask=kept)
    tl.store(window + (KEPT - 1) * C, x, mask=kept)
    if SILU:
        y = y / (1.0 + tl.exp(-y))
    tl.store(y_ptr + row * C + c, y, mask=mask)


def conv_step_triton_(
    x: Tensor, weight: Tensor, bias: Tensor, windows: Tensor, slots: Tensor, silu: bool
) -> Tensor:
    """``conv_step_`` in one launch; fp32 windows and results."""
    rows, channels = x.shape
    x = x if x.stride(1) == 1 else x.contiguous()
    y = torch.empty(rows, channels, dtype=torch.promote_types(x.dtype, bias.dtype), device=x.device)
    block = triton.next_power_of_2(channels)
    with on_device(x.device):
        step_kernel[(rows,)](
            x, weight, bias, windows, slots, y, x.stride(0),
            C=channels, KEPT=weight.shape[0] - 1, BLOCK_C=block, SILU=silu,
            num_warps=max(1, min(8, block // 128)),
        )  # fmt: skip
    return y
