"""Triton kernel of the Transformer's step: a program does one row, all heads.

It turns the token's queries and keys to their position, puts key and value into the row's rings
and attends to what the rings hold, reading them where they lie.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kssm.ops.launch import on_device

_BLOCK_W = 64


@triton.jit
def _wrapped(turns):
    """The same angles within half a turn (fp64)."""
    return turns - tl.floor(turns + 0.5)


@triton.jit
def _finite(x, mask):
    """1 where all of x is finite."""
    bad = tl.where(mask & ~(tl.abs(x) < float("inf")), 1, 0)
    return 1 - tl.max(bad, axis=0)


@triton.jit
def step_kernel(
    qkv_ptr, keys_ptr, values_ptr, count_ptr, phase_ptr, slots_ptr, dt_ptr, y_ptr, qkv_row,
    scale, LOG_THETA: tl.constexpr,
    HEADS: tl.constexpr, SHARED: tl.constexpr, D: tl.constexpr, WINDOW: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """HEADS key and value heads, each read by SHARED query heads of D channels.

    qkv: [N, (SHARED + 2) HEADS D]; keys, values: [rows, WINDOW, HEADS, D]; count: [rows, 1];
    phase: [rows, D / 2]. A row whose new key or value is not finite stays as it is.
    """
    HALF: tl.constexpr = D // 2
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    h = tl.arange(0, BLOCK_H)
    mask = h < HALF
    pair = h.to(tl.float64) * (2.0 / D)
    frequency = tl.exp(-pair * LOG_THETA) / 6.283185307179586
    step = tl.full([1], 1.0, tl.float64)
    if dt_ptr is not None:
        step = step * tl.load(dt_ptr + row).to(tl.float64)
    old = tl.load(phase_ptr + slot * HALF + h, mask=mask, other=0.0)
    turns = _wrapped(old.to(tl.float64) + _wrapped(step * frequency)).to(tl.float32)
    angle = turns * 6.283185307179586
    cos, sin = tl.cos(angle), tl.sin(angle)
    stored = tl.load(count_ptr + slot)
    count = tl.minimum(tl.maximum(tl.floor(stored + 0.5), 0.0), 2.0 * WINDOW - 1).to(tl.int32)
    place = count % WINDOW
    filled = tl.minimum(count + 1, WINDOW)
    token = qkv_ptr + row * qkv_row
    key, value = token + SHARED * HEADS * D, token + (SHARED + 1) * HEADS * D
    healthy = 1
    for head in tl.static_range(2 * HEADS):
        first = tl.load(key + head * D + h, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(key + head * D + HALF + h, mask=mask, other=0.0).to(tl.float32)
        healthy = healthy * _finite(first, mask) * _finite(second, mask)
    written = h < tl.where(healthy > 0, HALF, 0)
    for head in tl.static_range(HEADS):
        first = tl.load(key + head * D + h, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(key + head * D + HALF + h, mask=mask, other=0.0).to(tl.float32)
        k_1, k_2 = first * cos - second * sin, second * cos + first * sin
        v_1 = tl.load(value + head * D + h, mask=mask, other=0.0).to(tl.float32)
        v_2 = tl.load(value + head * D + HALF + h, mask=mask, other=0.0).to(tl.float32)
        ring = slot * (WINDOW * HEADS * D) + head * D
        for query in tl.static_range(SHARED):
            at = (head * SHARED + query) * D
            first = tl.load(token + at + h, mask=mask, other=0.0).to(tl.float32)
            second = tl.load(token + at + HALF + h, mask=mask, other=0.0).to(tl.float32)
            q_1, q_2 = first * cos - second * sin, second * cos + first * sin
            highest = tl.sum(k_1 * q_1 + k_2 * q_2, axis=0) * scale
            total = tl.full([1], 1.0, tl.float32)
            y_1, y_2 = v_1, v_2
            for start in range(0, filled, BLOCK_W):
                w = start + tl.arange(0, BLOCK_W)
                other = (w < filled) & (w != place)
                tile = ring + w[:, None] * (HEADS * D) + h[None, :]
                inside = other[:, None] & mask[None, :]
                a = tl.load(keys_ptr + tile, mask=inside, other=0.0)
                b = tl.load(keys_ptr + tile + HALF, mask=inside, other=0.0)
                scores = tl.sum(a * q_1[None, :] + b * q_2[None, :], axis=1) * scale
                scores = tl.where(other, scores, float("-inf"))
                new = tl.maximum(highest, tl.max(scores, axis=0))
                weights, fade = tl.exp(scores - new), tl.exp(highest - new)
                a = tl.load(values_ptr + tile, mask=inside, other=0.0)
                b = tl.load(values_ptr + tile + HALF, mask=inside, other=0.0)
                y_1 = y_1 * fade + tl.sum(a * weights[:, None], axis=0)
                y_2 = y_2 * fade + tl.sum(b * weights[:, None], axis=0)
                total = total * fade + tl.sum(weights, axis=0)
                highest = new
            out = y_ptr + (row * HEADS * SHARED + head * SHARED + query) * D
            tl.store(out + h, y_1 / total, mask=mask)
            tl.store(out + HALF + h, y_2 / total, mask=mask)
        here = ring + place * (HEADS * D) + h
        tl.store(keys_ptr + here, k_1, mask=written)
        tl.store(keys_ptr + here + HALF, k_2, mask=written)
        tl.store(values_ptr + here, v_1, mask=written)
        tl.store(values_ptr + here + HALF, v_2, mask=written)
    tl.store(phase_ptr + slot * HALF + h, turns, mask=written)
    after = stored + 1.0
    after = tl.where(after < WINDOW, after, WINDOW + after - tl.floor(after / WINDOW) * WINDOW)
    tl.store(count_ptr + slot, tl.where(healthy > 0, after, stored))


def ring_step_triton_(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    count: Tensor,
    phase: Tensor,
    slots: Tensor,
    dt: Tensor | None,
    theta: float,
) -> Tensor:
    """Advance N rows by one token.

    Args:
        qkv: [N, (query heads + 2 heads) D] projections of the token, not rotated.
        keys, values: arenas [rows, window, heads, D]; count: [rows, 1]; phase: [rows, D / 2],
            fp32, as ``TransformerBlock`` describes them; changed in place.
        slots: [N] rows of the arenas; only scratch rows may occur more than once.
        dt: [N] advances of the position, None = 1.
        theta: base of the rotary frequencies.

    Returns:
        The heads' outputs [N, query heads, D] fp32.
    """
    _, window, heads, size = keys.shape
    rows = qkv.shape[0]
    shared = (qkv.shape[1] // size - 2 * heads) // heads
    y = torch.empty(rows, heads * shared, size, dtype=torch.float32, device=qkv.device)
    block_h = triton.next_power_of_2(size // 2)
    with on_device(qkv.device):
        step_kernel[(rows,)](
            qkv, keys, values, count, phase, slots, None if dt is None else dt.contiguous(), y,
            qkv.stride(0), size**-0.5, LOG_THETA=math.log(theta),
            HEADS=heads, SHARED=shared, D=size, WINDOW=window,
            BLOCK_H=block_h, BLOCK_W=min(_BLOCK_W, triton.next_power_of_2(window)), num_warps=4,
        )  # fmt: skip
    return y
