"""Triton kernel of the WKV-6 step: one token for each of many rows, states changed in place."""

from __future__ import annotations

from typing import NamedTuple

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


@triton.jit
def gated_step_kernel(
    r_ptr, k_ptr, v_ptr, raw_ptr, base_ptr, dt_ptr, bonus_ptr, weight_ptr, bias_ptr, gate_ptr,
    states_ptr, slots_ptr, y_ptr, eps,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    MAX_LOG_RATE: tl.constexpr, MAX_DECAY: tl.constexpr,
):  # fmt: skip
    """One row and one head: decay from its raw rate, recurrence, norm of the head, gate."""
    token = tl.program_id(0).to(tl.int64)  # row * H + head
    row, head = token // H, token % H
    k, v = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    in_k, in_v = k < K, v < V
    mask = in_k[:, None] & in_v[None, :]
    slot = tl.load(slots_ptr + row).to(tl.int64)
    place = states_ptr + (slot * H + head) * (K * V) + k[:, None] * V + v[None, :]
    old = tl.load(place, mask=mask, other=0.0)
    read = tl.load(r_ptr + token * K + k, mask=in_k, other=0.0).to(tl.float32)
    key = tl.load(k_ptr + token * K + k, mask=in_k, other=0.0).to(tl.float32)
    value = tl.load(v_ptr + token * V + v, mask=in_v, other=0.0).to(tl.float32)
    rate = tl.load(raw_ptr + token * K + k, mask=in_k, other=0.0).to(tl.float32)
    rate += tl.load(base_ptr + head * K + k, mask=in_k, other=0.0).to(tl.float32)
    rate = tl.exp(tl.minimum(rate, MAX_LOG_RATE, propagate_nan=tl.PropagateNan.ALL))
    if dt_ptr is not None:
        rate *= tl.load(dt_ptr + row).to(tl.float32)
    decay = tl.exp(-tl.minimum(rate, MAX_DECAY, propagate_nan=tl.PropagateNan.ALL))
    bonus = tl.load(bonus_ptr + head * K + k, mask=in_k, other=0.0).to(tl.float32)
    update = key[:, None] * value[None, :]
    y = tl.sum(read[:, None] * (old + bonus[:, None] * update), axis=0)
    new = old * decay[:, None] + update
    tl.store(place, tl.where(tl.abs(new) < float("inf"), new, old), mask=mask)
    centred = tl.where(in_v, y - tl.sum(y, axis=0) / V, 0.0)
    y = centred / tl.sqrt(tl.sum(centred * centred, axis=0) / V + eps)
    y *= tl.load(weight_ptr + head * V + v, mask=in_v, other=0.0).to(tl.float32)
    y += tl.load(bias_ptr + head * V + v, mask=in_v, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + token * V + v, mask=in_v, other=0.0).to(tl.float32)
    tl.store(y_ptr + token * V + v, y * (gate / (1.0 + tl.exp(-gate))), mask=in_v)


class Gating(NamedTuple):
    """What surrounds the recurrence in RWKV-6.

    base: [H, K] log-rate of the decay, to which a token's own is added; dt: [N] or None; weight,
    bias: [H V] of the heads' norm, ``eps`` its epsilon; gate: [N, H V]; the log-rate and the
    decay's logarithm are cut at ``max_log_rate`` and ``-max_decay``.
    """

    base: Tensor
    dt: Tensor | None
    weight: Tensor
    bias: Tensor
    eps: float
    gate: Tensor
    max_log_rate: float
    max_decay: float


def wkv6_gated_step_triton_(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    raw_rate: Tensor,
    bonus: Tensor,
    gating: Gating,
    states: Tensor,
    slots: Tensor,
) -> Tensor:
    """One token a row, from projections to the gated output [N, H V] fp32, in one launch.

    Args:
        r, k, raw_rate: [N, H, K]; v: [N, H, V]; bonus: [H, K]; states, slots: as ``wkv6_step_``.
    """
    rows, heads, keys = r.shape
    values = v.shape[-1]
    y = torch.empty(rows, heads * values, dtype=torch.float32, device=r.device)
    tokens = [t.contiguous() for t in (r, k, v, raw_rate, gating.base)]
    dt = None if gating.dt is None else gating.dt.contiguous()
    with on_device(r.device):
        gated_step_kernel[(rows * heads,)](
            *tokens, dt, bonus, gating.weight, gating.bias, gating.gate.contiguous(),
            states, slots, y, gating.eps,
            H=heads, K=keys, V=values, BLOCK_K=triton.next_power_of_2(keys),
            BLOCK_V=triton.next_power_of_2(values), MAX_LOG_RATE=gating.max_log_rate,
            MAX_DECAY=gating.max_decay, num_warps=4,
        )  # fmt: skip
    return y


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
