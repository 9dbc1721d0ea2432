"""Triton kernel of the WKV-6 step: one token for each of many rows, states changed in place."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kssm.ops.launch import blocks_of, on_device

_BLOCK_V = 16


@triton.jit
def step_kernel(
    r_ptr, k_ptr, v_ptr, log_decay_ptr, bonus_ptr, states_ptr, slots_ptr, y_ptr,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """One row, one head, BLOCK_V values; a state that would not be finite keeps its old value."""
    blocks: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    pid = tl.program_id(0)
    token = (pid // blocks).to(tl.int64)  # row * H + head
    head = token % H
    k = tl.arange(0, BLOCK_K)
    v = (pid % blocks) * BLOCK_V + tl.arange(0, BLOCK_V)
    in_k, in_v = k < K, v < V
    mask = in_k[:, None] & in_v[None, :]
    slot = tl.load(slots_ptr + token // H).to(tl.int64)
    place = states_ptr + (slot * H + head) * (K * V) + k[:, None] * V + v[None, :]
    old = tl.load(place, mask=mask, other=0.0)
    read = tl.load(r_ptr + token * K + k, mask=in_k, other=0.0).to(tl.float32)
    key = tl.load(k_ptr + token * K + k, mask=in_k, other=0.0).to(tl.float32)
    value = tl.load(v_ptr + token * V + v, mask=in_v, other=0.0).to(tl.float32)
    decay = tl.exp(tl.load(log_decay_ptr + token * K + k, mask=in_k, other=0.0).to(tl.float32))
    bonus = tl.load(bonus_ptr + head * K + k, mask=in_k, other=0.0).to(tl.float32)
    update = key[:, None] * value[None, :]
    y = tl.sum(read[:, None] * (old + bonus[:, None] * update), axis=0)
    new = old * decay[:, None] + update
    tl.store(place, tl.where(tl.abs(new) < float("inf"), new, old), mask=mask)
    tl.store(y_ptr + token * V + v, y, mask=in_v)


def wkv6_step_triton_(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    bonus: Tensor,
    states: Tensor,
    slots: Tensor,
) -> Tensor:
    """``wkv6_step_`` in one launch."""
    rows, heads, keys = r.shape
    values = v.shape[-1]
    y = torch.empty(rows, heads, values, dtype=torch.float32, device=r.device)
    given = [t.contiguous() for t in (r, k, v, log_decay, bonus)]
    block_v = min(_BLOCK_V, triton.next_power_of_2(values))
    with on_device(r.device):
        step_kernel[(rows * heads * blocks_of(values, block_v),)](
            *given, states, slots, y,
            H=heads, K=keys, V=values,
            BLOCK_K=triton.next_power_of_2(keys), BLOCK_V=block_v, num_warps=2,
        )  # fmt: skip
    return y
