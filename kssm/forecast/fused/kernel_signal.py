"""Triton kernel in front of the blocks: scaler, features, score and embedding of one sample a row.

The formulas of ``kssm/ops/scaler_scan``, ``kssm/forecast/scaler.py`` and
``kssm/forecast/distribution.py``, which explain them; float64 until the features. A row's features
are computed side by side, one a lane: in float64 a logarithm takes about a hundred instructions.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

from kssm.forecast.fused.kernel_common import (
    INTERPRETED,
    finish_early,
    scratch,
    slots_of,
    wait_for_inputs,
)
from kssm.ops.scaler_scan.kernel import advance

LEAN = tl.constexpr(0.125)
"""What the residual stream is multiplied with where it is kept for products."""


@triton.jit
def _asinh_argument(x):
    """y >= 0 with asinh(x) = ±log1p(y), accurate at both ends for |x| up to 1e150."""
    size = tl.abs(x)
    square = size * size
    return size + square / (1.0 + tl.sqrt(1.0 + square))


@triton.jit
def _log1p(y):
    """log(1 + y) without the loss of digits near 0 (y > -1)."""
    u = 1.0 + y
    off = tl.where(u == 1.0, 1.0, u - 1.0)
    return tl.where(u == 1.0, y, tl.log(u) * (y / off))


@triton.jit
def scale_of(mean, variance):
    return tl.maximum(tl.sqrt(variance), 1e-8 * tl.abs(mean) + 1e-30)


@triton.jit
def normalise(x, mean, variance):
    """asinh of x in scales from the mean."""
    z = (x - mean) / scale_of(mean, variance)
    size = _log1p(_asinh_argument(z))
    return tl.where(z < 0, -size, size)


@triton.jit
def _round(x):
    """Nearest whole number, halves to even, of |x| < 2^51."""
    return (x + 6755399441055744.0) - 6755399441055744.0


@triton.jit
def _erfc(x):
    if INTERPRETED:
        result = 1.0 - tl.erf(x)
    else:
        result = libdevice.erfc(x)
    return result


@triton.jit
def _tail(quantiles, z, mask):
    """Two-sided tail probability of z under nine quantiles (pointers to the first of each row)."""
    low = tl.load(quantiles, mask=mask, other=0.0).to(tl.float64)
    median = tl.load(quantiles + 4, mask=mask, other=0.0).to(tl.float64)
    high = tl.load(quantiles + 8, mask=mask, other=0.0).to(tl.float64)
    distance = z - median
    side = tl.where(distance < 0, median - low, high - median)
    deviation = tl.maximum(side, 1e-6) * (1.4142135623730951 / 1.2815515655446004)
    outside = _erfc(tl.abs(distance) / deviation)
    place = quantiles[:, None] + tl.arange(0, 8)[None, :]
    left = tl.load(place, mask=mask[:, None], other=0.0).to(tl.float64)
    gap = tl.load(place + 1, mask=mask[:, None], other=0.0).to(tl.float64) - left
    part = (z[:, None] - left) / tl.maximum(gap, 1e-12)
    whole = tl.where(part >= 0, 1.0, 0.0)
    steps = tl.where(gap > 0, tl.minimum(tl.maximum(part, 0.0), 1.0), whole)
    between = 0.1 + 0.1 * tl.sum(steps, axis=1)
    inside = 2.0 * tl.minimum(between, 1.0 - between)
    return tl.where((z < low) | (z > high), outside, inside)


@triton.jit
def _pick(wide, first, column, FIRST: tl.constexpr):
    """``wide`` [M, 16] with the column FIRST replaced by ``first`` [M]."""
    return tl.where(column == FIRST, first[:, None], wide)


@triton.jit
def _features(x, dt, seen, before, after, MEMORY: tl.constexpr):
    """(the nine features in the columns of [M, 16], the sample in units from before it [M])."""
    column = tl.arange(0, 16)[None, :]
    mean = after[1]
    scale = scale_of(mean, after[2])
    steps = tl.maximum(tl.sqrt(after[3]), 0.01 * scale)
    moved = seen & (before[0] > 0)
    number = _pick(tl.zeros([x.shape[0], 16], tl.float64), tl.where(seen, x - mean, 0.0), column, 0)
    number = _pick(number, tl.where(moved, x - before[5], 0.0), column, 2)
    number = _pick(number, tl.where(moved, x - before[4], 0.0), column, 3)
    number = _pick(number, steps, column, 4)
    number = _pick(number, after[5] - mean, column, 5)
    number = _pick(number, tl.minimum(tl.maximum(after[0], 1.0), 4 * MEMORY), column, 6)
    number = _pick(number, after[6], column, 7)
    number = _pick(number, dt, column, 8)
    number = _pick(number, tl.where(seen, x - before[1], 0.0), column, 9)
    unit = tl.where((column == 2) | (column == 3), steps[:, None], scale[:, None])
    unit = tl.where((column == 6) | (column == 7) | (column == 8), 1.0, unit)
    unit = _pick(unit, scale_of(before[1], before[2]), column, 9)
    ratio = number / unit
    is_log = (column == 4) | (column == 6) | (column == 8)
    y = tl.where(column == 7, ratio, _asinh_argument(ratio))
    u = tl.where(is_log, ratio, 1.0 + y)
    near = (u == 1.0) | is_log
    correction = y / tl.where(near, 1.0, u - 1.0)
    size = tl.log(u) * tl.where(is_log, 1.0, correction)
    size = tl.where((u == 1.0) & (column != 4) & (column != 6) & (column != 8), y, size)
    value = tl.where((ratio < 0) & (is_log == 0), -size, size)
    value = tl.where((column == 6) | (column == 7), value / 6.0, value)
    value = _pick(value, tl.where(seen, 1.0, 0.0), column, 1)
    z = tl.sum(tl.where(column == 9, value, 0.0), axis=1)
    return tl.where(column < 9, value, 0.0), z


@triton.jit(do_not_specialize=["rows"])
def front_kernel(
    values_ptr,  # [rows] float64
    dt_ptr,  # [rows] float64
    slots_ptr,  # [rows] int64
    table_ptr,  # [2 + 2 layers] int64: addresses of the arena's entries
    embed_ptr,  # [16, DM], from row 9 on zeros
    bias_ptr,  # [DM]
    x_ptr,  # [room, DM]: embedded samples
    lean_ptr,  # [room, DM] or None: those times LEAN, in its own dtype
    squares_ptr,  # [room, PARTS] or None: their sums of squares, in the first column
    after_ptr,  # [room, 7] float64: statistics after the sample
    tail_ptr,  # [rows] float64
    rows,
    DM: tl.constexpr,
    HORIZON: tl.constexpr,
    MEMORY: tl.constexpr,
    FAST_MEMORY: tl.constexpr,
    CLIP: tl.constexpr,
    WARM_UP: tl.constexpr,
    MAX_ABSOLUTE: tl.constexpr,
    SCORED: tl.constexpr,
    PARTS: tl.constexpr,
    PDL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK rows. The arena is only read: whether the row is healthy shows at the end."""
    columns = tl.arange(0, DM)
    bias = tl.load(bias_ptr + columns)
    embed = tl.load(embed_ptr + tl.arange(0, 16)[:, None] * DM + columns[None, :])
    wait_for_inputs(PDL)
    finish_early(PDL)
    tile = tl.program_id(0)
    slot, live = slots_of(slots_ptr, tile, rows, BLOCK)
    row = tile * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(values_ptr + row, mask=live, other=0.0)
    dt = tl.load(dt_ptr + row, mask=live, other=1.0)
    place = tl.load(table_ptr).to(tl.pointer_type(tl.float64)) + slot * 7
    forecast = tl.load(table_ptr + 1).to(tl.pointer_type(tl.float32))
    before = ()
    for field in tl.static_range(7):
        before = before + (tl.load(place + field, mask=live, other=0.0),)
    after = advance(before, x, dt, MEMORY, FAST_MEMORY, CLIP, WARM_UP, MAX_ABSOLUTE)
    for field in tl.static_range(7):
        tl.store(after_ptr + row * 7 + field, after[field])
    seen = tl.abs(x) <= MAX_ABSOLUTE
    x = tl.where(seen, x, 0.0)
    features, z = _features(x, dt, seen, before, after, MEMORY)
    hidden = tl.dot(features.to(tl.float32), embed, input_precision="ieee") + bias[None, :]
    tl.store(scratch(x_ptr, tile, 0, BLOCK, DM, DM), hidden)
    if lean_ptr is not None:
        lean = hidden * LEAN
        kept = lean.to(lean_ptr.dtype.element_ty)
        tl.store(scratch(lean_ptr, tile, 0, BLOCK, DM, DM), kept)
        part = tl.arange(0, PARTS)[None, :]
        squares = tl.where(part == 0, tl.sum(lean * lean, axis=1)[:, None], 0.0)
        tl.store(scratch(squares_ptr, tile, 0, BLOCK, PARTS, PARTS), squares)
    ahead = tl.minimum(tl.maximum(_round(dt), 1.0), SCORED).to(tl.int64) - 1
    tail = _tail(forecast + (slot * HORIZON + ahead) * 9, z, live)
    scored = live & seen & (before[0] >= WARM_UP)
    tl.store(tail_ptr + row, tl.where(scored, tail, float("nan")), mask=row < rows)
