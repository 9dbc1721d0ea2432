"""Triton kernel of the scaler's recursion: one thread walks one row in float64."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kssm.ops import scaler_scan


@triton.jit
def _winsorise(innovation, variance, warm, CLIP: tl.constexpr):
    bound = CLIP * tl.sqrt(variance)
    clipped = tl.minimum(tl.maximum(innovation, -bound), bound)
    return tl.where(warm & (variance > 0), clipped, innovation)


@triton.jit
def advance(
    stats,
    x,
    dt,
    MEMORY: tl.constexpr,
    FAST_MEMORY: tl.constexpr,
    CLIP: tl.constexpr,
    WARM_UP: tl.constexpr,
    MAX_ABSOLUTE: tl.constexpr,
):
    """The statistics, a tuple in the order of ``FIELDS``, after one more sample."""
    count, mean, variance, difference, fast_mean, last, gap = stats
    seen = tl.abs(x) <= MAX_ABSOLUTE
    first = count == 0
    x = tl.where(seen, x, last)
    mean_0 = tl.where(first, x, mean)
    last_0 = tl.where(first, x, last)
    fast_0 = tl.where(first, x, fast_mean)
    new_count = count + 1.0
    share = 1.0 / tl.minimum(new_count, MEMORY)
    fast = 1.0 / tl.minimum(new_count, FAST_MEMORY)
    pair_share = 1.0 / tl.maximum(tl.minimum(count, MEMORY), 1.0)
    warm = count >= WARM_UP
    deviation = _winsorise(x - mean_0, variance, warm, CLIP)
    step = _winsorise(x - last_0, difference, warm, CLIP)
    rush = _winsorise(x - fast_0, variance, warm, CLIP)
    new_variance = (1.0 - share) * (variance + share * deviation * deviation)
    new_difference = difference + pair_share * (step * step - difference)
    return (
        tl.where(seen, new_count, count),
        tl.where(seen, mean_0 + share * deviation, mean),
        tl.where(seen, new_variance, variance),
        tl.where(seen & (count > 0), new_difference, difference),
        tl.where(seen, fast_0 + fast * rush, fast_mean),
        tl.where(seen, x, last),
        tl.where(seen, 0.0, gap + dt),
    )


@triton.jit(do_not_specialize=["rows", "length"])
def _scan_kernel(
    stats_ptr,  # [7, rows]
    values_ptr,  # [length, rows]
    dt_ptr,  # [length, rows]
    path_ptr,  # [length, 7, rows]
    rows,
    length,
    MEMORY: tl.constexpr,
    FAST_MEMORY: tl.constexpr,
    CLIP: tl.constexpr,
    WARM_UP: tl.constexpr,
    MAX_ABSOLUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = row < rows
    x_ptr = values_ptr + row
    step_ptr = dt_ptr + row
    out = path_ptr + row
    count = tl.load(stats_ptr + row, mask=live, other=0.0)
    mean = tl.load(stats_ptr + rows + row, mask=live, other=0.0)
    variance = tl.load(stats_ptr + 2 * rows + row, mask=live, other=0.0)
    difference = tl.load(stats_ptr + 3 * rows + row, mask=live, other=0.0)
    fast_mean = tl.load(stats_ptr + 4 * rows + row, mask=live, other=0.0)
    last = tl.load(stats_ptr + 5 * rows + row, mask=live, other=0.0)
    gap = tl.load(stats_ptr + 6 * rows + row, mask=live, other=0.0)
    for _ in range(length):
        x = tl.load(x_ptr, mask=live, other=0.0)
        dt = tl.load(step_ptr, mask=live, other=0.0)
        stats = (count, mean, variance, difference, fast_mean, last, gap)
        stats = advance(stats, x, dt, MEMORY, FAST_MEMORY, CLIP, WARM_UP, MAX_ABSOLUTE)
        count, mean, variance, difference, fast_mean, last, gap = stats
        tl.store(out, count, mask=live)
        tl.store(out + rows, mean, mask=live)
        tl.store(out + 2 * rows, variance, mask=live)
        tl.store(out + 3 * rows, difference, mask=live)
        tl.store(out + 4 * rows, fast_mean, mask=live)
        tl.store(out + 5 * rows, last, mask=live)
        tl.store(out + 6 * rows, gap, mask=live)
        x_ptr += rows
        step_ptr += rows
        out += 7 * rows


def scan_cuda(stats: Tensor, values: Tensor, dt: Tensor) -> Tensor:
    """Statistics after each sample [B, T, 7]; arguments as in ``scan``, on a GPU."""
    rows, length = values.shape
    fields = len(scaler_scan.FIELDS)
    path = torch.empty(length, fields, rows, dtype=torch.float64, device=values.device)
    block = 32
    _scan_kernel[(triton.cdiv(rows, block),)](
        stats.t().contiguous(),
        values.t().contiguous(),
        dt.t().contiguous(),
        path,
        rows,
        length,
        MEMORY=scaler_scan.MEMORY,
        FAST_MEMORY=scaler_scan.FAST_MEMORY,
        CLIP=scaler_scan.CLIP,
        WARM_UP=scaler_scan.WARM_UP,
        MAX_ABSOLUTE=scaler_scan.MAX_ABSOLUTE,
        BLOCK=block,
        num_warps=1,
    )
    return path.permute(2, 0, 1)
