"""Triton kernels for many rows: a layer's products, which touch no state.

Up to some thousand rows each product is a kernel of its own, beyond that ``dense_kernel`` computes
all that lie between two recurrences. A norm in front of a product moves behind it: its weight is
part of the matrix, and its scale, one number a row, multiplies the sums. So every operand comes as
it lies in memory. For kernels of one product the residual stream lies there twice, in fp32 and as
``lean``: in KIND and LEAN times as large, which keeps large ones in fp16's range. ``squares``
[room, PARTS] are the sums of its squares.
"""

import triton
import triton.language as tl

from kssm.forecast.fused.kernel_block import tile_of
from kssm.forecast.fused.kernel_common import (
    finish_early,
    product,
    scratch,
    silu,
    wait_for_inputs,
)
from kssm.forecast.fused.kernel_signal import LEAN


@triton.jit
def _scale(
    squares_ptr, tile, BLOCK: tl.constexpr, DM: tl.constexpr, EPS: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """What the norm multiplies a row of ``lean`` with, [BLOCK, 1]."""
    squares = tl.sum(tl.load(scratch(squares_ptr, tile, 0, BLOCK, PARTS, PARTS)), axis=1)
    return tl.rsqrt(squares / DM + EPS * LEAN * LEAN)[:, None]


@triton.jit
def normed_kernel(
    lean_ptr, squares_ptr, w_ptr, out_ptr,
    DM: tl.constexpr, N: tl.constexpr, EPS: tl.constexpr, PARTS: tl.constexpr,
    KIND: tl.constexpr, PDL: tl.constexpr, BLOCK: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, STAGES: tl.constexpr, ACTIVE: tl.constexpr,
):  # fmt: skip
    """BN columns of the norm's product with ``w_ptr`` [N, DM]: ``out_ptr`` [room, N].

    From column ACTIVE on they go through SiLU.
    """
    blocks: tl.constexpr = N // BN
    block = tl.program_id(0) % blocks
    tile = tl.program_id(0) // blocks
    wait_for_inputs(PDL)
    finish_early(PDL)
    total = tl.zeros([BLOCK, BN], tl.float32)
    for k in tl.range(0, DM // BK, num_stages=STAGES):
        x = tl.load(scratch(lean_ptr, tile, k * BK, BLOCK, DM, BK))
        total += product(x, tile_of(w_ptr + k * BK, block * BN, BN, DM, BK), KIND)
    total *= _scale(squares_ptr, tile, BLOCK, DM, EPS, PARTS)
    if (block + 1) * BN > ACTIVE:
        column = block * BN + tl.arange(0, BN)[None, :]
        total = tl.where(column >= ACTIVE, silu(total), total)
    tl.store(scratch(out_ptr, tile, block * BN, BLOCK, N, BN), total.to(KIND))


@triton.jit
def gated_kernel(
    lean_ptr, squares_ptr, w_ptr, out_ptr,
    DM: tl.constexpr, N: tl.constexpr, EPS: tl.constexpr, PARTS: tl.constexpr,
    KIND: tl.constexpr, PDL: tl.constexpr, BLOCK: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """As ``normed_kernel`` for ``w_ptr`` [2 N, DM]: the first half's SiLU times the second."""
    blocks: tl.constexpr = N // BN
    block = tl.program_id(0) % blocks
    tile = tl.program_id(0) // blocks
    wait_for_inputs(PDL)
    finish_early(PDL)
    gate = tl.zeros([BLOCK, BN], tl.float32)
    value = tl.zeros([BLOCK, BN], tl.float32)
    for k in tl.range(0, DM // BK, num_stages=STAGES):
        x = tl.load(scratch(lean_ptr, tile, k * BK, BLOCK, DM, BK))
        gate += product(x, tile_of(w_ptr + k * BK, block * BN, BN, DM, BK), KIND)
        value += product(x, tile_of(w_ptr + k * BK, N + block * BN, BN, DM, BK), KIND)
    scale = _scale(squares_ptr, tile, BLOCK, DM, EPS, PARTS)
    hidden = silu(gate * scale) * (value * scale)
    tl.store(scratch(out_ptr, tile, block * BN, BLOCK, N, BN), hidden.to(KIND))


@triton.jit
def residual_kernel(
    input_ptr, w_ptr, x_ptr, lean_ptr, squares_ptr,
    K: tl.constexpr, STRIDE: tl.constexpr, DM: tl.constexpr, KIND: tl.constexpr,
    PDL: tl.constexpr, BLOCK: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """BN columns of the residual stream plus those of the product of ``w_ptr`` [DM, K] with the
    first K numbers of the rows of ``input_ptr`` [room, STRIDE]."""
    blocks: tl.constexpr = DM // BN
    block = tl.program_id(0) % blocks
    tile = tl.program_id(0) // blocks
    place = scratch(x_ptr, tile, block * BN, BLOCK, DM, BN)
    wait_for_inputs(PDL)
    finish_early(PDL)
    total = tl.zeros([BLOCK, BN], tl.float32)
    for k in tl.range(0, K // BK, num_stages=STAGES):
        part = tl.load(scratch(input_ptr, tile, k * BK, BLOCK, STRIDE, BK))
        total += product(part, tile_of(w_ptr + k * BK, block * BN, BN, K, BK), KIND)
    total += tl.load(place)
    tl.store(place, total)
    lean = total * LEAN
    tl.store(scratch(lean_ptr, tile, block * BN, BLOCK, DM, BN), lean.to(KIND))
    squares = tl.sum(lean * lean, axis=1)
    tl.store(scratch(squares_ptr, tile, block, BLOCK, blocks, 1), squares[:, None])


@triton.jit
def _normed(x, DM: tl.constexpr, EPS: tl.constexpr, KIND: tl.constexpr):
    """x [M, DM] over its root mean square, as an operand; the norm's weight is in the matrix."""
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / DM + EPS)
    return (x * scale[:, None]).to(KIND)


@triton.jit
def _mixed(
    x, inner_ptr, tile, w_out_ptr, w_mlp_in_ptr, w_mlp_out_ptr,
    DM: tl.constexpr, DI: tl.constexpr, HIDDEN: tl.constexpr, EPS: tl.constexpr,
    KIND: tl.constexpr, BLOCK: tl.constexpr, BC: tl.constexpr, BH: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """x [BLOCK, DM] after the output projection and the feed-forward layer."""
    for block in tl.range(0, DI // BC, num_stages=STAGES):
        mixed = tl.load(scratch(inner_ptr, tile, block * BC, BLOCK, 2 * DI, BC))
        x += product(mixed, tile_of(w_out_ptr + block * BC, 0, DM, DI, BC), KIND)
    normed = _normed(x, DM, EPS, KIND)
    for block in tl.range(0, HIDDEN // BH, num_stages=STAGES):
        gate = product(normed, tile_of(w_mlp_in_ptr, block * BH, BH, DM, DM), KIND)
        value = product(normed, tile_of(w_mlp_in_ptr, HIDDEN + block * BH, BH, DM, DM), KIND)
        units = silu(gate) * value
        x += product(units, tile_of(w_mlp_out_ptr + block * BH, 0, DM, HIDDEN, BH), KIND)
    return x


@triton.jit
def dense_kernel(
    x_ptr, inner_ptr, w_out_ptr, w_mlp_in_ptr, w_mlp_out_ptr, w_next_ptr, next_ptr,
    DM: tl.constexpr, DI: tl.constexpr, HIDDEN: tl.constexpr, NEXT: tl.constexpr,
    ACTIVE: tl.constexpr, LAYER: tl.constexpr, EPS: tl.constexpr, KIND: tl.constexpr,
    PDL: tl.constexpr, BLOCK: tl.constexpr, BC: tl.constexpr, BH: tl.constexpr,
    BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """All products of BLOCK rows between two recurrences; the residual stream stays in registers.

    LAYER: the first DI columns of ``inner_ptr`` [room, 2 DI] and the feed-forward layer change
    ``x_ptr`` [room, DM]. ``next_ptr`` [room, NEXT] is the product of its norm with ``w_next_ptr``
    [NEXT, DM], through SiLU from column ACTIVE on.
    """
    tile = tl.program_id(0)
    place = scratch(x_ptr, tile, 0, BLOCK, DM, DM)
    wait_for_inputs(PDL)
    finish_early(PDL)
    x = tl.load(place)
    if LAYER:
        x = _mixed(
            x, inner_ptr, tile, w_out_ptr, w_mlp_in_ptr, w_mlp_out_ptr, DM, DI, HIDDEN, EPS, KIND,
            BLOCK, BC, BH, STAGES,
        )  # fmt: skip
        tl.store(place, x)
        tl.debug_barrier()  # ``next_ptr`` may be ``inner_ptr``
    normed = _normed(x, DM, EPS, KIND)
    for block in tl.range(0, NEXT // BN, num_stages=STAGES):
        out = product(normed, tile_of(w_next_ptr, block * BN, BN, DM, DM), KIND)
        if (block + 1) * BN > ACTIVE:
            column = block * BN + tl.arange(0, BN)[None, :]
            out = tl.where(column >= ACTIVE, silu(out), out)
        tl.store(scratch(next_ptr, tile, block * BN, BLOCK, NEXT, BN), out.to(KIND))


@triton.jit
def select_kernel(
    inner_ptr, low_ptr, selection_ptr, w_select_ptr, w_up_ptr,
    DI: tl.constexpr, LOW: tl.constexpr, RANK: tl.constexpr, REST: tl.constexpr,
    COLUMNS: tl.constexpr, WIDTH: tl.constexpr, KIND: tl.constexpr, PDL: tl.constexpr,
    BLOCK: tl.constexpr, STAGES: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """alpha, omega, dt and B [room, COLUMNS] of BLOCK rows from their active tokens.

    ``low_ptr`` [SPLITS, room, LOW] is scratch memory: SPLITS programs share out the columns, each
    has the low-rank part to itself.
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
