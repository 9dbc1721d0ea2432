"""Triton kernel of Mamba's step: decay, update, read-out, skip and gate in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kssm.ops.launch import blocks_of, on_device

_FEW = 32
"""Up to so many rows, a program does few channels."""


@triton.jit
def step_kernel(
    x_ptr, raw_ptr, bias_ptr, a_log_ptr, b_ptr, c_ptr, skip_ptr, gate_ptr, states_ptr, slots_ptr,
    dt_ptr, y_ptr, x_row, raw_row, b_row, c_row, gate_row,
    D: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One row and BLOCK_D channels; a state whose new value is not finite keeps its old one."""
    blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    row = (tl.program_id(0) // blocks).to(tl.int64)
    d = (tl.program_id(0) % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    in_d, in_n = d < D, n < N
    mask = in_d[:, None] & in_n[None, :]
    tile = d[:, None] * N + n[None, :]
    slot = tl.load(slots_ptr + row).to(tl.int64)
    place = states_ptr + slot * (D * N) + tile
    old = tl.load(place, mask=mask, other=0.0)
    a = -tl.exp(tl.load(a_log_ptr + tile, mask=mask, other=0.0).to(tl.float32))
    x = tl.load(x_ptr + row * x_row + d, mask=in_d, other=0.0).to(tl.float32)
    raw = tl.load(raw_ptr + row * raw_row + d, mask=in_d, other=0.0).to(tl.float32)
    raw += tl.load(bias_ptr + d, mask=in_d, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + row * b_row + n, mask=in_n, other=0.0).to(tl.float32)
    c = tl.load(c_ptr + row * c_row + n, mask=in_n, other=0.0).to(tl.float32)
    step = softplus(raw)
    if dt_ptr is not None:
        step *= tl.load(dt_ptr + row).to(tl.float32)
    new = tl.exp(step[:, None] * a) * old + (step * x)[:, None] * b[None, :]
    tl.store(place, tl.where(tl.abs(new) < float("inf"), new, old), mask=mask)
    y = tl.sum(new * c[None, :], axis=1)
    y += tl.load(skip_ptr + d, mask=in_d, other=0.0).to(tl.float32) * x
    gate = tl.load(gate_ptr + row * gate_row + d, mask=in_d, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * D + d, y * (gate / (1.0 + tl.exp(-gate))), mask=in_d)


@triton.jit
def softplus(x):
    """log(1 + exp(x)) without overflow, and accurate where it is small (log1p by Kahan's trick)."""
    e = tl.exp(-tl.abs(x))
    u = 1.0 + e
    rest = tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) + rest


def selective_step_triton_(
    x: Tensor,
    raw_step: Tensor,
    bias: Tensor,
    a_log: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor,
    gate: Tensor,
    states: Tensor,
    slots: Tensor,
    dt: Tensor | None,
) -> Tensor:
    """``selective_step_`` in one launch; the last dimension of every tensor is contiguous."""
    rows, channels = x.shape
    y = torch.empty(rows, channels, dtype=torch.float32, device=x.device)
    block_d = 32 if rows <= _FEW else 128
    with on_device(x.device):
        step_kernel[(rows * blocks_of(channels, block_d),)](
            x, raw_step, bias, a_log, b, c, skip, gate, states, slots,
            None if dt is None else dt.contiguous(), y,
            x.stride(0), raw_step.stride(0), b.stride(0), c.stride(0), gate.stride(0),
            D=channels, N=a_log.shape[1], BLOCK_D=block_d,
            BLOCK_N=triton.next_power_of_2(a_log.shape[1]), num_warps=block_d // 32,
        )  # fmt: skip
    return y
