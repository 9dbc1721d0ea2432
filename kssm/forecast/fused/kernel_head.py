"""Triton kernels behind the blocks: quantile head, and what a healthy row keeps."""

import triton
import triton.language as tl

from kssm.forecast.fused.kernel_block import tile_of
from kssm.forecast.fused.kernel_common import (
    finish_early,
    is_finite,
    product,
    residual,
    rms_norm,
    scratch,
    sigmoid,
    silu,
    slots_of,
    vector,
    wait_for_inputs,
)
from kssm.forecast.fused.kernel_signal import normalise
from kssm.ops.kssm_scan.kernel_common import softplus


@triton.jit(do_not_specialize=["room"])
def hidden_kernel(
    x_ptr, parts_ptr, norm_ptr, weight_ptr, hidden_ptr, room,
    DM: tl.constexpr, HIDDEN: tl.constexpr, EPS: tl.constexpr, PARTS: tl.constexpr,
    KIND: tl.constexpr, PDL: tl.constexpr, BLOCK: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """BH units of the head's hidden layer, [room, HIDDEN] in KIND."""
    blocks: tl.constexpr = HIDDEN // BH
    block = tl.program_id(0) % blocks
    weight = tile_of(weight_ptr, block * BH, BH, DM, DM)
    norm = vector(norm_ptr, BLOCK, DM)
    wait_for_inputs(PDL)
    finish_early(PDL)
    tile = tl.program_id(0) // blocks
    x = residual(x_ptr, parts_ptr, tile, room, BLOCK, DM, PARTS)
    hidden = silu(product(rms_norm(x, norm, DM, EPS), weight, KIND))
    tl.store(scratch(hidden_ptr, tile, block * BH, BLOCK, HIDDEN, BH), hidden)


@triton.jit
def _quantiles(raw, last, M: tl.constexpr, AHEAD: tl.constexpr):
    """Outputs [M, 16 AHEAD], ten and padding a horizon, -> quantiles [M AHEAD, 16], nine of them.

    Output 0 is the median's own part, 1 the gate of the last sample, then come four increments
    downwards and four upwards. A product with ones and zeros adds them up.
    """
    output = tl.arange(0, 16)
    raw = tl.reshape(raw, [M, AHEAD, 16])
    kind = output[None, None, :]
    terms = tl.where(kind == 1, sigmoid(raw) * last[:, None, None], softplus(raw, True))
    terms = tl.reshape(tl.where(kind == 0, raw, terms), [M * AHEAD, 16])
    row, level = output[:, None], output[None, :]
    down = (row >= 2) & (row < 6) & (level + row <= 5)
    up = (row >= 6) & (row < 10) & (level >= row - 1)
    spread = tl.where(row < 2, 1.0, tl.where(up, 1.0, tl.where(down, -1.0, 0.0)))
    terms = tl.where(output[None, :] < 10, terms, 0.0)
    if M == 1:
        result = tl.sum(terms[:, :, None] * spread[None, :, :], axis=1)
    else:
        result = tl.dot(terms, spread, input_precision="ieee")
    return result


@triton.jit(do_not_specialize=["rows"])
def head_kernel(
    hidden_ptr, after_ptr, slots_ptr, table_ptr, weight_ptr, bias_ptr, healthy_ptr, rows,
    HIDDEN: tl.constexpr, HORIZON: tl.constexpr, LARGEST: tl.constexpr, KIND: tl.constexpr,
    PDL: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """AHEAD horizons of the forecast, written to healthy rows; block 0 keeps their statistics too.

    Healthy is a row whose hidden layer is within ±LARGEST and whose last sample is finite in
    normalised units: its outputs are finite then, so every block finds it without the others'.
    """
    blocks: tl.constexpr = HORIZON // AHEAD
    columns: tl.constexpr = 16 * AHEAD
    block = tl.program_id(0) % blocks
    weight_ptr += block * (columns * HIDDEN)
    bias = vector(bias_ptr + block * columns, BLOCK, columns)
    tile = tl.program_id(0) // blocks
    slot, live = slots_of(slots_ptr, tile, rows, BLOCK)
    row = tile * BLOCK + tl.arange(0, BLOCK)
    kept = after_ptr + row * 7
    mean = tl.load(kept + 1, mask=live, other=0.0)
    variance = tl.load(kept + 2, mask=live, other=0.0)
    last = normalise(tl.load(kept + 5, mask=live, other=0.0), mean, variance).to(tl.float32)
    forecast = tl.load(table_ptr + 1).to(tl.pointer_type(tl.float32)) + slot * (HORIZON * 9)
    scaler = tl.load(table_ptr).to(tl.pointer_type(tl.float64)) + slot * 7
    weight = tile_of(weight_ptr, 0, columns, HIDDEN, HIDDEN)
    wait_for_inputs(PDL)
    finish_early(PDL)
    hidden = tl.load(scratch(hidden_ptr, tile, 0, BLOCK, HIDDEN, HIDDEN))
    large = tl.sum(tl.where(tl.abs(hidden.to(tl.float32)) <= LARGEST, 0, 1), axis=1)
    raw = product(hidden, weight, KIND)
    healthy = (large == 0) & is_finite(last)
    quantiles = _quantiles(raw + bias, last, BLOCK, AHEAD)
    quantiles = tl.reshape(quantiles, [BLOCK, AHEAD, 16])
    ahead = (block * AHEAD + tl.arange(0, AHEAD))[None, :, None] * 9
    level = tl.arange(0, 16)[None, None, :]
    mask = (live & healthy)[:, None, None] & (level < 9)
    tl.store(forecast[:, None, None] + ahead + level, quantiles, mask=mask)
    if block == 0:
        tl.store(healthy_ptr + row, healthy | (slot == 0), mask=row < rows)
        for field in tl.static_range(7):
            value = tl.load(kept + field, mask=live, other=0.0)
            tl.store(scaler + field, value, mask=live & healthy)


@triton.jit
def raw_kernel(
    hidden_ptr, weight_ptr, bias_ptr, raw_ptr,
    HIDDEN: tl.constexpr, HORIZON: tl.constexpr, KIND: tl.constexpr, PDL: tl.constexpr,
    BLOCK: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """BN horizons of one of the ten outputs: ``raw_ptr`` [room, 10 HORIZON] fp32, for many rows."""
    blocks: tl.constexpr = 10 * HORIZON // BN
    column = tl.program_id(0) % blocks * BN + tl.arange(0, BN)
    tile = tl.program_id(0) // blocks
    row = column % HORIZON * 16 + column // HORIZON
    weight = weight_ptr + row[:, None] * HIDDEN + tl.arange(0, BK)[None, :]
    wait_for_inputs(PDL)
    finish_early(PDL)
    total = tl.zeros([BLOCK, BN], tl.float32)
    for k in tl.range(0, HIDDEN // BK, num_stages=STAGES):
        hidden = tl.load(scratch(hidden_ptr, tile, k * BK, BLOCK, HIDDEN, BK))
        total += product(hidden, tl.load(weight + k * BK), KIND)
    total += tl.load(bias_ptr + row)[None, :]
    first = tl.program_id(0) % blocks * BN
    tl.store(scratch(raw_ptr, tile, first, BLOCK, 10 * HORIZON, BN), total)


@triton.jit
def _output(
    raw_ptr, tile, output, first,
    BLOCK: tl.constexpr, HORIZON: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """One of the ten outputs [BLOCK, AHEAD] for the horizons from ``first`` on."""
    return tl.load(scratch(raw_ptr, tile, output * HORIZON + first, BLOCK, 10 * HORIZON, AHEAD))


@triton.jit
def _side_by_side(q0, q1, q2, q3, q4, q5, q6, q7, q8):
    """[M, N] nine times -> [M, N, 2, 2, 2, 2], of which the first nine of sixteen count."""
    even = tl.join(tl.join(q0, q8), tl.join(q4, q4))
    even = tl.join(even, tl.join(tl.join(q2, q2), tl.join(q6, q6)))
    odd = tl.join(tl.join(q1, q1), tl.join(q5, q5))
    odd = tl.join(odd, tl.join(tl.join(q3, q3), tl.join(q7, q7)))
    return tl.join(even, odd)


@triton.jit(do_not_specialize=["rows"])
def quantiles_kernel(
    hidden_ptr, raw_ptr, after_ptr, slots_ptr, table_ptr, healthy_ptr, rows,
    HIDDEN: tl.constexpr, HORIZON: tl.constexpr, LARGEST: tl.constexpr, PDL: tl.constexpr,
    BLOCK: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """What ``head_kernel`` does after its product, for BLOCK rows and AHEAD horizons.

    Each output is a tensor of its own until the quantiles are put side by side.
    """
    first = tl.program_id(0) % (HORIZON // AHEAD) * AHEAD
    tile = tl.program_id(0) // (HORIZON // AHEAD)
    slot, live = slots_of(slots_ptr, tile, rows, BLOCK)
    row = tile * BLOCK + tl.arange(0, BLOCK)
    wait_for_inputs(PDL)
    finish_early(PDL)
    kept = after_ptr + row * 7
    mean = tl.load(kept + 1, mask=live, other=0.0)
    variance = tl.load(kept + 2, mask=live, other=0.0)
    last = normalise(tl.load(kept + 5, mask=live, other=0.0), mean, variance).to(tl.float32)
    hidden = tl.load(scratch(hidden_ptr, tile, 0, BLOCK, HIDDEN, HIDDEN)).to(tl.float32)
    large = tl.sum(tl.where(tl.abs(hidden) <= LARGEST, 0, 1), axis=1)
    healthy = (large == 0) & is_finite(last)
    q4 = _output(raw_ptr, tile, 0, first, BLOCK, HORIZON, AHEAD)
    q4 += sigmoid(_output(raw_ptr, tile, 1, first, BLOCK, HORIZON, AHEAD)) * last[:, None]
    q3 = q4 - softplus(_output(raw_ptr, tile, 2, first, BLOCK, HORIZON, AHEAD), True)
    q2 = q3 - softplus(_output(raw_ptr, tile, 3, first, BLOCK, HORIZON, AHEAD), True)
    q1 = q2 - softplus(_output(raw_ptr, tile, 4, first, BLOCK, HORIZON, AHEAD), True)
    q0 = q1 - softplus(_output(raw_ptr, tile, 5, first, BLOCK, HORIZON, AHEAD), True)
    q5 = q4 + softplus(_output(raw_ptr, tile, 6, first, BLOCK, HORIZON, AHEAD), True)
    q6 = q5 + softplus(_output(raw_ptr, tile, 7, first, BLOCK, HORIZON, AHEAD), True)
    q7 = q6 + softplus(_output(raw_ptr, tile, 8, first, BLOCK, HORIZON, AHEAD), True)
    q8 = q7 + softplus(_output(raw_ptr, tile, 9, first, BLOCK, HORIZON, AHEAD), True)
    quantiles = _side_by_side(q0, q1, q2, q3, q4, q5, q6, q7, q8)
    quantiles = tl.reshape(quantiles, [BLOCK, 16 * AHEAD])
    column = tl.arange(0, 16 * AHEAD)[None, :]
    forecast = tl.load(table_ptr + 1).to(tl.pointer_type(tl.float32)) + slot * (HORIZON * 9)
    place = forecast[:, None] + first * 9 + column // 16 * 9 + column % 16
    tl.store(place, quantiles, mask=(live & healthy)[:, None] & (column % 16 < 9))
    if first == 0:
        scaler = tl.load(table_ptr).to(tl.pointer_type(tl.float64)) + slot * 7
        tl.store(healthy_ptr + row, healthy | (slot == 0), mask=row < rows)
        for field in tl.static_range(7):
            value = tl.load(kept + field, mask=live, other=0.0)
            tl.store(scaler + field, value, mask=live & healthy)
