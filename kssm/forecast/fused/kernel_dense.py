"""Triton kernels for many rows: the products of a layer, which touch no state.

A program takes a tile of rows through one to three products whose results stay with it. Operands
that come from another product go through scratch memory (the caches): as registers they would
leave no room for the sums.
"""

import triton
import triton.language as tl

from kssm.forecast.fused.kernel_block import mlp_block, tile_of
from kssm.forecast.fused.kernel_common import (
    finish_early,
    product,
    rms_norm,
    scratch,
    silu,
    vector,
    wait_for_inputs,
)


@triton.jit
def _project(
    x, inner_ptr, w_out_ptr, tile,
    DM: tl.constexpr, DI: tl.constexpr, BC: tl.constexpr, KIND: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """x [M, DM] plus the projection of the first DI columns of the tile's rows [M, 2 DI]."""
    for block in tl.range(0, DI // BC, num_stages=STAGES):
        mixed = tl.load(scratch(inner_ptr, tile, block * BC, x.shape[0], 2 * DI, BC))
        x += product(mixed, tile_of(w_out_ptr + block * BC, 0, DM, DI, BC), KIND)
    return x


@triton.jit
def _normed(x, norm_ptr, place, DM: tl.constexpr, EPS: tl.constexpr, KIND: tl.constexpr):
    """The norm of x [M, DM] as an operand, by way of ``place``."""
    tl.store(place, rms_norm(x, vector(norm_ptr, x.shape[0], DM), DM, EPS).to(KIND))
    tl.debug_barrier()
    return tl.load(place)


@triton.jit
def _feed_forward(
    x, normed, w_in_ptr, w_out_ptr,
    DM: tl.constexpr, HIDDEN: tl.constexpr, KIND: tl.constexpr, BH: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """x [M, DM] plus the feed-forward layer."""
    for block in tl.range(0, HIDDEN // BH, num_stages=STAGES):
        w_gate = tile_of(w_in_ptr, block * BH, BH, DM, DM)
        w_value = tile_of(w_in_ptr, HIDDEN + block * BH, BH, DM, DM)
        hidden = mlp_block(normed, w_gate, w_value, KIND)
        x += product(hidden, tile_of(w_out_ptr + block * BH, 0, DM, HIDDEN, BH), KIND)
    return x


@triton.jit
def dense_kernel(
    x_ptr, inner_ptr, normed_ptr, norm_ptr, w_out_ptr, w_mlp_in_ptr, w_mlp_out_ptr, next_norm_ptr,
    w_next_ptr, next_ptr,
    DM: tl.constexpr, DI: tl.constexpr, HIDDEN: tl.constexpr, NEXT: tl.constexpr,
    EPS: tl.constexpr, KIND: tl.constexpr, PDL: tl.constexpr, BLOCK: tl.constexpr,
    BC: tl.constexpr, BH: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
    LAYER: tl.constexpr, ACTIVE: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """BLOCK rows between two recurrences: from ``inner_ptr`` [room, 2 DI] to ``next_ptr``.

    LAYER: the output projection and the feed-forward layer change ``x_ptr`` [room, DM] in place.
    Then ``next_ptr`` [room, NEXT] is the product of its norm and the next matrix, through SiLU if
    ACTIVE; SPLITS programs (one with LAYER) share out its columns. ``normed_ptr`` [SPLITS, room,
    DM] is scratch memory.
    """
    tile = tl.program_id(0) // SPLITS
    split = tl.program_id(0) % SPLITS
    room = tl.num_programs(0) // SPLITS * BLOCK
    x_at = scratch(x_ptr, tile, 0, BLOCK, DM, DM)
    normed_at = scratch(normed_ptr + split.to(tl.int64) * room * DM, tile, 0, BLOCK, DM, DM)
    wait_for_inputs(PDL)
    finish_early(PDL)
    x = tl.load(x_at)
    if LAYER:
        x = _project(x, inner_ptr, w_out_ptr, tile, DM, DI, BC, KIND, STAGES)
        normed = _normed(x, norm_ptr, normed_at, DM, EPS, KIND)
        x = _feed_forward(x, normed, w_mlp_in_ptr, w_mlp_out_ptr, DM, HIDDEN, KIND, BH, STAGES)
        tl.store(x_at, x)
        tl.debug_barrier()
    normed = _normed(x, next_norm_ptr, normed_at, DM, EPS, KIND)
    count: tl.constexpr = NEXT // BN // SPLITS
    for block in tl.range(split * count, (split + 1) * count, num_stages=STAGES):
        out = product(normed, tile_of(w_next_ptr, block * BN, BN, DM, DM), KIND)
        if ACTIVE:
            out = silu(out)
        tl.store(scratch(next_ptr, tile, block * BN, BLOCK, NEXT, BN), out.to(KIND))


@triton.jit
def select_kernel(
    inner_ptr, low_ptr, selection_ptr, w_select_ptr, w_up_ptr,
    DI: tl.constexpr, LOW: tl.constexpr, RANK: tl.constexpr, REST: tl.constexpr,
    COLUMNS: tl.constexpr, WIDTH: tl.constexpr, KIND: tl.constexpr, PDL: tl.constexpr,
    BLOCK: tl.constexpr, STAGES: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """alpha, omega, dt and B [room, COLUMNS] of BLOCK rows from their active tokens.

    ``low_ptr`` [SPLITS, room, LOW] is scratch memory: SPLITS programs share out the columns.
    """
    tile = tl.program_id(0) // SPLITS
    split = tl.program_id(0) % SPLITS
    room = tl.num_programs(0) // SPLITS * BLOCK
    wait_for_inputs(PDL)
    finish_early(PDL)
    low = tl.zeros([BLOCK, LOW], tl.float32)
    for block in tl.range(0, DI // WIDTH, num_stages=STAGES):
        active = tl.load(scratch(inner_ptr, tile, block * WIDTH, BLOCK, 2 * DI, WIDTH))
        low += product(active, tile_of(w_select_ptr + block * WIDTH, 0, LOW, DI, WIDTH), KIND)
    own = low_ptr + split.to(tl.int64) * room * LOW
    tl.store(scratch(own, tile, 0, BLOCK, LOW, LOW), low.to(KIND))
    tl.debug_barrier()
    blocks: tl.constexpr = DI // WIDTH
    count: tl.constexpr = 3 * blocks // SPLITS
    for block in tl.range(split * count, (split + 1) * count, num_stages=STAGES):
        part = tl.load(scratch(own, tile, block // blocks * RANK, BLOCK, LOW, RANK))
        gates = product(part, tile_of(w_up_ptr, block * WIDTH, WIDTH, RANK, RANK), KIND)
        place = scratch(selection_ptr, tile, block * WIDTH, BLOCK, COLUMNS, WIDTH)
        tl.store(place, gates.to(KIND))
    if split == 0:
        rest = tl.load(scratch(own, tile, 3 * RANK, BLOCK, LOW, REST))
        tl.store(scratch(selection_ptr, tile, 3 * DI, BLOCK, COLUMNS, REST), rest)
