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
def _outputs(
    hidden_ptr, weight_ptr, bias_ptr, tile, first, LARGEST: tl.constexpr, HIDDEN: tl.constexpr,
    HORIZON: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr, BK: tl.constexpr,
    STEP: tl.constexpr,
):  # fmt: skip
    """(the ten outputs of each of BK horizons [BLOCK, BK], whether a row's inputs are small)."""
    outputs = ()
    for c in tl.static_range(10):
        bias = tl.load(bias_ptr + c * HORIZON + first + tl.arange(0, BK))
        outputs = outputs + (bias[None, :] + tl.zeros([BLOCK, BK], tl.float32),)
    large = tl.zeros([BLOCK], tl.int32)
    for start in tl.range(0, HIDDEN, STEP, num_stages=1):
        hidden = tl.load(scratch(hidden_ptr, tile, start, BLOCK, HIDDEN, STEP))
        large += tl.sum(tl.where(tl.abs(hidden.to(tl.float32)) <= LARGEST, 0, 1), axis=1)
        sums = ()
        for c in tl.static_range(10):
            place = weight_ptr + c * HORIZON * HIDDEN + start
            weight = tile_of(place, first, BK, HIDDEN, STEP)
            sums = sums + (outputs[c] + product(hidden, weight, KIND),)
        outputs = sums
    return outputs, large == 0


@triton.jit(do_not_specialize=["rows"])
def head_kernel(
    hidden_ptr, after_ptr, slots_ptr, table_ptr, weight_ptr, bias_ptr, healthy_ptr, rows,
    HIDDEN: tl.constexpr, HORIZON: tl.constexpr, LARGEST: tl.constexpr, KIND: tl.constexpr,
    PDL: tl.constexpr, BLOCK: tl.constexpr, BK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """BK horizons of the forecast, written to healthy rows; block 0 keeps their statistics too.

    Healthy is a row whose hidden layer is within ±LARGEST and whose last sample is finite in
    normalised units: its outputs are finite then, so every block finds it without the others'.
    """
    blocks: tl.constexpr = HORIZON // BK
    block = tl.program_id(0) % blocks
    first = block * BK
    wait_for_inputs(PDL)
    finish_early(PDL)
    tile = tl.program_id(0) // blocks
    slot, live = slots_of(slots_ptr, tile, rows, BLOCK)
    row = tile * BLOCK + tl.arange(0, BLOCK)
    outputs, small = _outputs(
        hidden_ptr, weight_ptr, bias_ptr, tile, first, LARGEST, HIDDEN, HORIZON, KIND, BLOCK, BK,
        STEP,
    )  # fmt: skip
    kept = after_ptr + row * 7
    mean = tl.load(kept + 1, mask=live, other=0.0)
    variance = tl.load(kept + 2, mask=live, other=0.0)
    last = normalise(tl.load(kept + 5, mask=live, other=0.0), mean, variance).to(tl.float32)
    healthy = small & is_finite(last)
    median = outputs[0] + tl.sigmoid(outputs[1]) * last[:, None]
    forecast = tl.load(table_ptr + 1).to(tl.pointer_type(tl.float32)) + slot * (HORIZON * 9)
    place = forecast[:, None] + (first + tl.arange(0, BK))[None, :] * 9
    mask = (live & healthy)[:, None]
    tl.store(place + 4, median, mask=mask)
    low = median
    high = median
    for i in tl.static_range(4):
        low -= softplus(outputs[2 + i], True)
        high += softplus(outputs[6 + i], True)
        tl.store(place + 3 - i, low, mask=mask)
        tl.store(place + 5 + i, high, mask=mask)

    if block == 0:
        tl.store(healthy_ptr + row, healthy | (slot == 0), mask=row < rows)
        scaler = tl.load(table_ptr).to(tl.pointer_type(tl.float64)) + slot * 7
        for field in tl.static_range(7):
            value = tl.load(kept + field, mask=live, other=0.0)
            tl.store(scaler + field, value, mask=live & healthy)
