"""Triton kernel of Mamba-2's step: decay, update, read-out, skip and gate in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kssm.ops.launch import blocks_of, on_device
from kssm.ops.selective_scan.kernel_step import softplus

_FEW = 32
"""Up to so many rows, a head's channels are shared out over programs."""


@triton.jit
def step_kernel(
    x_ptr, raw_ptr, bias_ptr, a_log_ptr, b_ptr, c_ptr, skip_ptr, gate_ptr, states_ptr, slots_ptr,
    dt_ptr, y_ptr, x_row, raw_row, b_row, c_row, gate_row,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One row, one head, BLOCK_P channels; a state that would not be finite keeps its old value."""
    blocks: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    pid = tl.program_id(0)
    head = (pid // blocks) % H
    row = (pid // (blocks * H)).to(tl.int64)
    p = (pid % blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    n = tl.arange(0, BLOCK_N)
    in_p, in_n = p < P, n < N
    mask = in_p[:, None] & in_n[None, :]
    channel = head * P + p
    shared = (head // (H // G)) * N + n
    slot = tl.load(slots_ptr + row).to(tl.int64)
    place = states_ptr + slot * (H * P * N) + channel[:, None] * N + n[None, :]
    old = tl.load(place, mask=mask, other=0.0)
    x = tl.load(x_ptr + row * x_row + channel, mask=in_p, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + row * b_row + shared, mask=in_n, other=0.0).to(tl.float32)
    c = tl.load(c_ptr + row * c_row + shared, mask=in_n, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + row * gate_row + channel, mask=in_p, other=0.0).to(tl.float32)
    raw = tl.load(raw_ptr + row * raw_row + head).to(tl.float32)
    step = softplus(raw + tl.load(bias_ptr + head).to(tl.float32))
    if dt_ptr is not None:
        step *= tl.load(dt_ptr + row).to(tl.float32)
    decay = tl.exp(-step * tl.exp(tl.load(a_log_ptr + head).to(tl.float32)))
    new = decay * old + (step * x)[:, None] * b[None, :]
    tl.store(place, tl.where(tl.abs(new) < float("inf"), new, old), mask=mask)
    y = tl.sum(new * c[None, :], axis=1) + tl.load(skip_ptr + head).to(tl.float32) * x
    tl.store(y_ptr + row * (H * P) + channel, y * (gate / (1.0 + tl.exp(-gate))), mask=in_p)


def ssd_step_triton_(
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
    """``ssd_step_`` in one launch; all but the first dimension of every tensor are contiguous."""
    rows, heads, size = x.shape
    y = torch.empty(rows, heads, size, dtype=torch.float32, device=x.device)
    block_p = min(16 if rows <= _FEW else 64, triton.next_power_of_2(size))
    with on_device(x.device):
        step_kernel[(rows * heads * blocks_of(size, block_p),)](
            x, raw_step, bias, a_log, b, c, skip, gate, states, slots,
            None if dt is None else dt.contiguous(), y,
            x.stride(0), raw_step.stride(0), b.stride(0), c.stride(0), gate.stride(0),
            H=heads, G=b.shape[1], P=size, N=b.shape[2],
            BLOCK_P=block_p, BLOCK_N=triton.next_power_of_2(b.shape[2]),
            num_warps=max(1, block_p // 16),
        )  # fmt: skip
    return y
