"""Triton kernel for many rows: a program takes a tile of rows through all layers.

Rows need nothing from one another, so no program waits for another and what lies between the
phases stays in the caches. Weights come from the L2 cache, once a tile. The residual stream is
kept in registers only where it is summed: elsewhere they hold the recurrence.
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
    opaque,
    product,
    rms_norm,
    scratch,
    settled,
    slots_of,
    vector,
    wait_for_inputs,
)
from kssm.forecast.fused.kernel_prefetch import prefetch_rows


@triton.jit
def _filter_phase(
    x, norm_ptr, w_in_ptr, w_select_ptr, window, channel_ptr, live, tile, act_ptr, gate_ptr,
    low_ptr,
    DM: tl.constexpr, DI: tl.constexpr, LOW: tl.constexpr, TAPS: tl.constexpr,
    EPS: tl.constexpr, KIND: tl.constexpr, BC: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The first phase for all channels; leaves the selection [M, LOW] in KIND."""
    normed = settled(rms_norm(x, vector(norm_ptr, x.shape[0], DM), DM, EPS).to(KIND))
    low = tl.zeros([x.shape[0], LOW], tl.float32)
    for block in tl.range(0, DI // BC, num_stages=STAGES):
        channels = block * BC + tl.arange(0, BC)
        taps = vectors(channel_ptr + block * BC, TAPS + 1, DI, x.shape[0], BC)
        w_token = tile_of(w_in_ptr, block * BC, BC, DM, DM)
        w_gate = tile_of(w_in_ptr, DI + block * BC, BC, DM, DM)
        past = window_of(window, channels, live, DI, TAPS)
        act = scratch(act_ptr, tile, block * BC, x.shape[0], DI, BC)
        gate = scratch(gate_ptr, tile, block * BC, x.shape[0], DI, BC)
        active = filter_block(
            normed, w_token, w_gate, past, window, channels, taps, live, act, gate, DI, TAPS, KIND
        )
        low += product(active, tile_of(w_select_ptr + block * BC, 0, LOW, DI, BC), KIND)
    tl.store(scratch(low_ptr, tile, 0, x.shape[0], LOW, LOW), low.to(KIND))


@triton.jit
def _recur_phase(
    w_up_ptr, state, factor, channel_ptr, live, tile, act_ptr, gate_ptr, low_ptr,
    BLOCK: tl.constexpr, DI: tl.constexpr, LOW: tl.constexpr, RANK: tl.constexpr,
    WIDTH: tl.constexpr, TAPS: tl.constexpr, EPS: tl.constexpr, KIND: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """The second phase but for its projection: the gated outputs replace the active tokens."""
    low = (
        tl.load(scratch(low_ptr, tile, 0, BLOCK, LOW, RANK)),
        tl.load(scratch(low_ptr, tile, RANK, BLOCK, LOW, RANK)),
        tl.load(scratch(low_ptr, tile, 2 * RANK, BLOCK, LOW, RANK)),
    )
    groups: tl.constexpr = DI // WIDTH
    for group in tl.range(0, groups, num_stages=STAGES):
        first = group * WIDTH
        ups = up_tiles(w_up_ptr + first * RANK, DI, RANK, WIDTH)
        constants = vectors(channel_ptr + (TAPS + 1) * DI + first, 8, DI, BLOCK, WIDTH)
        b_re = tl.load(scratch(low_ptr, tile, 3 * RANK + group, BLOCK, LOW, 1)).to(tl.float32)
        b_im = tl.load(scratch(low_ptr, tile, 3 * RANK + groups + group, BLOCK, LOW, 1))
        place = scratch(act_ptr, tile, first, BLOCK, DI, WIDTH)
        active = tl.load(place).to(tl.float32)
        gate = tl.load(scratch(gate_ptr, tile, first, BLOCK, DI, WIDTH)).to(tl.float32)
        state_at = state[:, None] + 2 * first + tl.arange(0, 2 * WIDTH)[None, :]
        stored = tl.load(state_at, mask=live[:, None], other=0.0)
        mixed = recur_block(
            selected(low, ups, KIND), constants, b_re + 1.0, b_im.to(tl.float32), stored, state_at,
            factor, live, active, gate, WIDTH, EPS, KIND,
        )  # fmt: skip
        tl.store(place, mixed.to(KIND))


@triton.jit
def _project(
    x, mixed_ptr, w_out_ptr, tile,
    DM: tl.constexpr, DI: tl.constexpr, WIDTH: tl.constexpr, KIND: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """x [M, DM] plus the projection of the rows [M, DI] at ``mixed_ptr``."""
    for block in tl.range(0, DI // WIDTH, num_stages=STAGES):
        mixed = tl.load(scratch(mixed_ptr, tile, block * WIDTH, x.shape[0], DI, WIDTH))
        x += product(mixed, tile_of(w_out_ptr + block * WIDTH, 0, DM, DI, WIDTH), KIND)
    return x


@triton.jit
def _mlp_phase(
    x, norm_ptr, w_in_ptr, w_out_ptr,
    DM: tl.constexpr, HIDDEN: tl.constexpr, EPS: tl.constexpr, KIND: tl.constexpr,
    BH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """x plus the feed-forward layer."""
    normed = settled(rms_norm(x, vector(norm_ptr, x.shape[0], DM), DM, EPS).to(KIND))
    for block in tl.range(0, HIDDEN // BH, num_stages=STAGES):
        w_gate = tile_of(w_in_ptr, block * BH, BH, DM, DM)
        w_value = tile_of(w_in_ptr, HIDDEN + block * BH, BH, DM, DM)
        mixed = mlp_block(normed, w_gate, w_value, KIND)
        x += product(mixed, tile_of(w_out_ptr + block * BH, 0, DM, HIDDEN, BH), KIND)
    return x


@triton.jit(do_not_specialize=["rows", "layers"])
def layers_kernel(
    x_ptr, slots_ptr, dt_ptr, table_ptr, norms_ptr, channels_ptr, w_in_ptr, w_select_ptr,
    w_up_ptr, w_out_ptr, w_mlp_in_ptr, w_mlp_out_ptr, act_ptr, gate_ptr, low_ptr, rows, layers,
    DM: tl.constexpr, DI: tl.constexpr, LOW: tl.constexpr, RANK: tl.constexpr,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr, TAPS: tl.constexpr, EPS: tl.constexpr,
    KIND: tl.constexpr, PDL: tl.constexpr, BLOCK: tl.constexpr, BC: tl.constexpr,
    BH: tl.constexpr, RECUR: tl.constexpr, STAGES: tl.constexpr, PREFETCH: tl.constexpr,
):  # fmt: skip
    """BLOCK rows through every layer; ``x_ptr`` [room, DM] changes in place.

    The recurrence takes RECUR of them at a time: it needs the most registers a row.
    Scratch memory: act, gate [room, DI] and low [room, LOW] in KIND.
    """
    wait_for_inputs(PDL)
    finish_early(PDL)
    for layer in tl.range(0, layers):
        tile = opaque(tl.program_id(0))
        slot, live = slots_of(slots_ptr, tile, rows, BLOCK)
        channel_ptr = channels_ptr + layer * ((TAPS + 9) * DI)
        norm_ptr = norms_ptr + layer * (2 * DM)
        window = tl.load(table_ptr + 2 + 2 * layer).to(tl.pointer_type(tl.float32))
        state = tl.load(table_ptr + 3 + 2 * layer).to(tl.pointer_type(tl.float32))
        if PREFETCH:
            prefetch_rows(state + slot * (2 * DI), 2 * DI)
        _filter_phase(
            tl.load(scratch(x_ptr, tile, 0, BLOCK, DM, DM)), norm_ptr,
            w_in_ptr + layer * (2 * DI * DM), w_select_ptr + layer * (LOW * DI),
            window + slot * ((TAPS - 1) * DI), channel_ptr, live, tile, act_ptr, gate_ptr,
            low_ptr, DM, DI, LOW, TAPS, EPS, KIND, BC, STAGES,
        )  # fmt: skip
        tl.debug_barrier()
        for part in tl.range(0, BLOCK // RECUR):
            own_tile = opaque(tl.program_id(0)) * (BLOCK // RECUR) + part
            own_slot, own_live = slots_of(slots_ptr, own_tile, rows, RECUR)
            row = own_tile * RECUR + tl.arange(0, RECUR)
            factor = tl.load(dt_ptr + row, mask=own_live, other=1.0).to(tl.float32)
            _recur_phase(
                w_up_ptr + layer * (3 * DI * RANK), state + own_slot * (2 * DI), factor,
                channel_ptr, own_live, own_tile, act_ptr, gate_ptr, low_ptr, RECUR, DI, LOW, RANK,
                WIDTH, TAPS, EPS, KIND, STAGES,
            )  # fmt: skip
        if PREFETCH and layer + 1 < layers:
            following = tl.load(table_ptr + 4 + 2 * layer).to(tl.pointer_type(tl.float32))
            prefetch_rows(following + slot * ((TAPS - 1) * DI), (TAPS - 1) * DI)
        tl.debug_barrier()
        tile = opaque(tl.program_id(0))
        x_at = scratch(x_ptr, tile, 0, BLOCK, DM, DM)
        w_out = w_out_ptr + layer * (DM * DI)
        x = _project(tl.load(x_at), act_ptr, w_out, tile, DM, DI, WIDTH, KIND, STAGES)
        x = _mlp_phase(
            x, norm_ptr + DM, w_mlp_in_ptr + layer * (2 * HIDDEN * DM),
            w_mlp_out_ptr + layer * (DM * HIDDEN), DM, HIDDEN, EPS, KIND, BH, STAGES,
        )  # fmt: skip
        tl.store(x_at, x)
        tl.debug_barrier()
