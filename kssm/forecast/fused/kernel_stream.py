"""Triton kernels for many rows that stream their states: what a layer does beside its products.

They hold no products, so that they take few registers and many programs are at hand to keep the
memory busy. One moves the convolution's windows, the other the recurrence's states, in place.
"""

import triton
import triton.language as tl

from kssm.forecast.fused.kernel_block import convolve, recur_block, vectors, window_of
from kssm.forecast.fused.kernel_common import (
    finish_early,
    scratch,
    silu,
    slots_of,
    wait_for_inputs,
)


@triton.jit(do_not_specialize=["rows", "layer"])
def window_kernel(
    inner_ptr, slots_ptr, table_ptr, channel_ptr, rows, layer,
    DI: tl.constexpr, TAPS: tl.constexpr, KIND: tl.constexpr, PDL: tl.constexpr,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """BLOCK rows, WIDTH channels: tokens, the first half of ``inner_ptr`` [room, 2 DI], are
    convolved and become active."""
    blocks: tl.constexpr = DI // WIDTH
    first = tl.program_id(0) % blocks * WIDTH
    tile = tl.program_id(0) // blocks
    slot, live = slots_of(slots_ptr, tile, rows, BLOCK)
    window_ptr = tl.load(table_ptr + 2 + 2 * layer).to(tl.pointer_type(tl.float32))
    window = window_ptr + slot * ((TAPS - 1) * DI)
    channels = first + tl.arange(0, WIDTH)
    past = window_of(window, channels, live, DI, TAPS)
    taps = vectors(channel_ptr + first, TAPS + 1, DI, BLOCK, WIDTH)
    wait_for_inputs(PDL)
    finish_early(PDL)
    place = scratch(inner_ptr, tile, first, BLOCK, 2 * DI, WIDTH)
    token = tl.load(place).to(tl.float32)
    active = silu(convolve(token, past, window, channels, taps, live, DI, TAPS))
    tl.store(place, active.to(KIND))


@triton.jit(do_not_specialize=["rows", "layer"])
def state_kernel(
    inner_ptr, selection_ptr, slots_ptr, dt_ptr, table_ptr, channel_ptr, rows, layer,
    DI: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, TAPS: tl.constexpr,
    EPS: tl.constexpr, KIND: tl.constexpr, PDL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK rows and one group: gates, recurrence, read-out, norm, gate.

    ``selection_ptr`` [room, COLUMNS]: alpha, omega and dt, DI columns each, then B's two parts.
    The outputs replace the active tokens in ``inner_ptr`` [room, 2 DI].
    """
    groups: tl.constexpr = DI // WIDTH
    group = tl.program_id(0) % groups
    tile = tl.program_id(0) // groups
    first = group * WIDTH
    state_ptr = tl.load(table_ptr + 3 + 2 * layer).to(tl.pointer_type(tl.float32))
    slot, live = slots_of(slots_ptr, tile, rows, BLOCK)
    place = (state_ptr + slot * (2 * DI))[:, None] + 2 * first + tl.arange(0, 2 * WIDTH)[None, :]
    stored = tl.load(place, mask=live[:, None], other=0.0)
    row = tile * BLOCK + tl.arange(0, BLOCK)
    factor = tl.load(dt_ptr + row, mask=live, other=1.0).to(tl.float32)
    constants = vectors(channel_ptr + (TAPS + 1) * DI + first, 8, DI, BLOCK, WIDTH)
    wait_for_inputs(PDL)
    finish_early(PDL)
    selection = (
        tl.load(scratch(selection_ptr, tile, first, BLOCK, COLUMNS, WIDTH)).to(tl.float32),
        tl.load(scratch(selection_ptr, tile, DI + first, BLOCK, COLUMNS, WIDTH)).to(tl.float32),
        tl.load(scratch(selection_ptr, tile, 2 * DI + first, BLOCK, COLUMNS, WIDTH)).to(tl.float32),
    )
    b_re = tl.load(scratch(selection_ptr, tile, 3 * DI + group, BLOCK, COLUMNS, 1))
    b_im = tl.load(scratch(selection_ptr, tile, 3 * DI + groups + group, BLOCK, COLUMNS, 1))
    mixed = scratch(inner_ptr, tile, first, BLOCK, 2 * DI, WIDTH)
    active = tl.load(mixed).to(tl.float32)
    gate = tl.load(scratch(inner_ptr, tile, DI + first, BLOCK, 2 * DI, WIDTH)).to(tl.float32)
    result = recur_block(
        selection, constants, b_re.to(tl.float32) + 1.0, b_im.to(tl.float32), stored, place, factor,
        live, active, gate, WIDTH, EPS, KIND,
    )  # fmt: skip
    tl.store(mixed, result.to(KIND))
