"""Triton kernels for few rows: each phase of a layer is one launch, its channels spread out.

A program takes a tile of rows and a block of channels. Sums over all channels (selection, output
and down projection) are left as one partial sum a block, which the next phase adds up: no atomics,
the same bits every time. Weights and states are read before the kernel waits for the one before it
(a kernel lets the next one start only after it has waited itself, so whatever the last but one
wrote is there).
"""

import triton
import triton.language as tl

from kssm.forecast.fused.kernel_block import (
    filter_block,
    mlp_block,
    recur_block,
    selected,
    tile_of,
    up_tiles,
    vectors,
    window_of,
)
from kssm.forecast.fused.kernel_common import (
    finish_early,
    product,
    residual,
    rms_norm,
    scratch,
    settled,
    slots_of,
    vector,
    wait_for_inputs,
    with_parts,
)


@triton.jit(do_not_specialize=["rows", "room", "layer"])
def filter_kernel(
    x_ptr, parts_ptr, x_out_ptr, slots_ptr, table_ptr, norm_ptr, w_in_ptr, w_select_ptr,
    channel_ptr, act_ptr, gate_ptr, low_ptr, rows, room, layer,
    DM: tl.constexpr, DI: tl.constexpr, LOW: tl.constexpr, TAPS: tl.constexpr,
    EPS: tl.constexpr, PARTS: tl.constexpr, KIND: tl.constexpr, PDL: tl.constexpr,
    BLOCK: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """BC channels of the first phase; leaves partial selections [DI / BC, room, LOW]."""
    blocks: tl.constexpr = DI // BC
    block = tl.program_id(0) % blocks
    channels = block * BC + tl.arange(0, BC)
    w_token = tile_of(w_in_ptr, block * BC, BC, DM, DM)
    w_gate = tile_of(w_in_ptr, DI + block * BC, BC, DM, DM)
    w_select = tile_of(w_select_ptr + block * BC, 0, LOW, DI, BC)
    weight = vector(norm_ptr, BLOCK, DM)
    taps = vectors(channel_ptr + block * BC, TAPS + 1, DI, BLOCK, BC)
    window_ptr = tl.load(table_ptr + 2 + 2 * layer).to(tl.pointer_type(tl.float32))
    tile = tl.program_id(0) // blocks
    slot, live = slots_of(slots_ptr, tile, rows, BLOCK)
    window = window_ptr + slot * ((TAPS - 1) * DI)
    past = window_of(window, channels, live, DI, TAPS)
    wait_for_inputs(PDL)
    finish_early(PDL)
    x = residual(x_ptr, parts_ptr, tile, room, BLOCK, DM, PARTS)
    if PARTS > 0:
        if block == 0:
            tl.store(scratch(x_out_ptr, tile, 0, BLOCK, DM, DM), x)
    normed = rms_norm(x, weight, DM, EPS).to(KIND)
    act = scratch(act_ptr, tile, block * BC, BLOCK, DI, BC)
    gate = scratch(gate_ptr, tile, block * BC, BLOCK, DI, BC)
    active = filter_block(
        normed, w_token, w_gate, past, window, channels, taps, live, act, gate, DI, TAPS, KIND
    )
    low = product(active, w_select, KIND)
    tl.store(scratch(low_ptr + block * room * LOW, tile, 0, BLOCK, LOW, LOW), low)


@triton.jit
def _sum_low(
    low_ptr, tile, room, first, BLOCK: tl.constexpr, LOW: tl.constexpr, WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """Columns first ... [BLOCK, WIDTH] of the selection, summed over its partial sums."""
    total = tl.load(scratch(low_ptr, tile, first, BLOCK, LOW, WIDTH))
    for part in tl.static_range(1, PARTS):
        total += tl.load(scratch(low_ptr + part * room * LOW, tile, first, BLOCK, LOW, WIDTH))
    return settled(total)


@triton.jit(do_not_specialize=["rows", "room", "layer"])
def recur_kernel(
    low_ptr, act_ptr, gate_ptr, slots_ptr, dt_ptr, table_ptr, w_up_ptr, w_out_ptr, channel_ptr,
    parts_ptr, rows, room, layer,
    DM: tl.constexpr, DI: tl.constexpr, LOW: tl.constexpr, RANK: tl.constexpr,
    WIDTH: tl.constexpr, TAPS: tl.constexpr, EPS: tl.constexpr, LOW_PARTS: tl.constexpr,
    KIND: tl.constexpr, PDL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One group of the second phase; leaves partial outputs [DI / WIDTH, room, DM]."""
    groups: tl.constexpr = DI // WIDTH
    group = tl.program_id(0) % groups
    first = group * WIDTH
    w_out = tile_of(w_out_ptr + first, 0, DM, DI, WIDTH)
    ups = up_tiles(w_up_ptr + first * RANK, DI, RANK, WIDTH)
    constants = vectors(channel_ptr + (TAPS + 1) * DI + first, 8, DI, BLOCK, WIDTH)
    state_ptr = tl.load(table_ptr + 3 + 2 * layer).to(tl.pointer_type(tl.float32))
    tile = tl.program_id(0) // groups
    slot, live = slots_of(slots_ptr, tile, rows, BLOCK)
    place = (state_ptr + slot * (2 * DI))[:, None] + 2 * first + tl.arange(0, 2 * WIDTH)[None, :]
    stored = tl.load(place, mask=live[:, None], other=0.0)
    row = tile * BLOCK + tl.arange(0, BLOCK)
    factor = tl.load(dt_ptr + row, mask=live, other=1.0).to(tl.float32)
    wait_for_inputs(PDL)
    finish_early(PDL)
    low = (
        _sum_low(low_ptr, tile, room, 0, BLOCK, LOW, RANK, LOW_PARTS),
        _sum_low(low_ptr, tile, room, RANK, BLOCK, LOW, RANK, LOW_PARTS),
        _sum_low(low_ptr, tile, room, 2 * RANK, BLOCK, LOW, RANK, LOW_PARTS),
    )
    b_re = _sum_low(low_ptr, tile, room, 3 * RANK + group, BLOCK, LOW, 1, LOW_PARTS) + 1.0
    b_im = _sum_low(low_ptr, tile, room, 3 * RANK + groups + group, BLOCK, LOW, 1, LOW_PARTS)
    active = tl.load(scratch(act_ptr, tile, first, BLOCK, DI, WIDTH)).to(tl.float32)
    gate = tl.load(scratch(gate_ptr, tile, first, BLOCK, DI, WIDTH)).to(tl.float32)
    mixed = recur_block(
        selected(low, ups, KIND), constants, b_re, b_im, stored, place, factor, live, active, gate,
        WIDTH, EPS, KIND,
    )  # fmt: skip
    part = product(mixed, w_out, KIND)
    tl.store(scratch(parts_ptr + group * room * DM, tile, 0, BLOCK, DM, DM), part)


@triton.jit(do_not_specialize=["room"])
def mlp_kernel(
    x_ptr, parts_ptr, x_out_ptr, norm_ptr, w_in_ptr, w_out_ptr, out_parts_ptr, room,
    DM: tl.constexpr, HIDDEN: tl.constexpr, EPS: tl.constexpr, PARTS: tl.constexpr,
    KIND: tl.constexpr, PDL: tl.constexpr, BLOCK: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """BH hidden units of the third phase; leaves partial outputs [HIDDEN / BH, room, DM]."""
    blocks: tl.constexpr = HIDDEN // BH
    block = tl.program_id(0) % blocks
    w_gate = tile_of(w_in_ptr, block * BH, BH, DM, DM)
    w_value = tile_of(w_in_ptr, HIDDEN + block * BH, BH, DM, DM)
    w_out = tile_of(w_out_ptr + block * BH, 0, DM, HIDDEN, BH)
    weight = vector(norm_ptr, BLOCK, DM)
    tile = tl.program_id(0) // blocks
    x = tl.load(scratch(x_ptr, tile, 0, BLOCK, DM, DM))
    wait_for_inputs(PDL)
    finish_early(PDL)
    x = with_parts(x, parts_ptr, tile, room, BLOCK, DM, PARTS)
    if block == 0:
        tl.store(scratch(x_out_ptr, tile, 0, BLOCK, DM, DM), x)
    mixed = mlp_block(rms_norm(x, weight, DM, EPS).to(KIND), w_gate, w_value, KIND)
    part = product(mixed, w_out, KIND)
    tl.store(scratch(out_parts_ptr + block * room * DM, tile, 0, BLOCK, DM, DM), part)
