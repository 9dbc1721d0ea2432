"""Triton kernels of the forward scan: a chunk's summary, and the scan itself."""

import triton
import triton.language as tl

from kssm.ops.kssm_scan.kernel_common import (
    apply_summaries,
    kept_row,
    load_pair,
    locate,
    span,
    store_pair,
    store_summary,
)
from kssm.ops.kssm_scan.kernel_gates import evolve, gates, grow, load_channel
from kssm.ops.kssm_scan.kernel_loads import (
    addressed,
    as_words,
    groups_of,
    lanes_end,
    load_group,
    load_groups,
    move,
    spread,
    widen,
)


@triton.jit
def inputs_at(
    alpha, omega, dt, x, b_re, b_im, token_dt, token, lanes, group,
    ROWS: tl.constexpr, PAIRED: tl.constexpr,
):  # fmt: skip
    """Pointers to the inputs of ``token`` (counted over all rows), in ROWS' order."""
    ptrs = (
        as_words(alpha, PAIRED) + token * ROWS[0] + lanes,
        as_words(omega, PAIRED) + token * ROWS[1] + lanes,
        as_words(dt, PAIRED) + token * ROWS[2] + lanes,
        as_words(x, PAIRED) + token * ROWS[3] + lanes,
        b_re + token * ROWS[4] + group,
        b_im + token * ROWS[5] + group,
    )
    if token_dt is not None:
        ptrs = ptrs + (token_dt + token,)
    return ptrs


@triton.jit
def step(values, u: tl.constexpr, h_re, h_im, channel, TWICE: tl.constexpr, EXACT: tl.constexpr):
    """(h after token u, its gates, whether it holds the state)."""
    factor = 1.0
    hold = False
    if len(values) == 7:
        factor = values[6][u]
        hold = factor == 0.0
    gate = gates(values[0][u], values[1][u], values[2][u], factor, channel, EXACT)
    drive = gate[0] * values[3][u]
    new_re, new_im = evolve(
        h_re, h_im, drive, spread(values[4][u], TWICE), spread(values[5][u], TWICE), gate, EXACT
    )
    if len(values) == 7:
        new_re = tl.where(hold, h_re, new_re)
        new_im = tl.where(hold, h_im, new_im)
    return new_re, new_im, gate, hold


@triton.jit
def lengthen(product_re, product_im, gate, hold, HOLDS: tl.constexpr, EXACT: tl.constexpr):
    """``grow``, but for tokens that hold the state."""
    new_re, new_im = grow(product_re, product_im, gate, EXACT)
    if HOLDS:
        new_re = tl.where(hold, product_re, new_re)
        new_im = tl.where(hold, product_im, new_im)
    return new_re, new_im


@triton.jit(do_not_specialize=["T", "n_chunks", "chunk_len", "once"])
def forward_summary_kernel(
    alpha_ptr, omega_ptr, dt_ptr, x_ptr, b_re_ptr, b_im_ptr, token_dt_ptr,
    lengths_ptr, offsets_ptr, table_ptr, first_ptr,
    alpha_bias_ptr, omega_bias_ptr, omega_scale_ptr, dt_bias_ptr,
    summary_ptr, T, n_chunks, chunk_len, once,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr, UNROLL: tl.constexpr, AHEAD: tl.constexpr,
    PAIRED: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Per chunk: the product of λ less one and the end state from zero, [units, D, 4].

    Nobody reads a row's last one, so it is left out.
    """
    rows = (lengths_ptr, offsets_ptr, table_ptr, first_ptr)
    _, first, length, chunk, chunks, unit, group, _, first_channel = locate(
        T, n_chunks, rows, GROUPS, WIDTH, BLOCK_D
    )
    channels = first_channel + tl.arange(0, BLOCK_D)
    lanes = addressed(first_channel, BLOCK_D, PAIRED)
    TWICE: tl.constexpr = PAIRED and BLOCK_D >= 2 * WIDTH
    group = groups_of(lanes, group, WIDTH, BLOCK_D, PAIRED)
    mask, there = None, None
    if BLOCK_D < 2 * WIDTH and WIDTH % BLOCK_D != 0:
        mask = channels < (group + 1) * WIDTH
        there = lanes < lanes_end(group, WIDTH, PAIRED)
    start, end = span(chunk, chunk_len, length)
    end = tl.where(chunk == chunks - 1, start, end)
    parameters = (alpha_bias_ptr, omega_bias_ptr, omega_scale_ptr, dt_bias_ptr)
    channel = load_channel(parameters, channels, mask, EXACT)
    ptrs = inputs_at(
        alpha_ptr, omega_ptr, dt_ptr, x_ptr, b_re_ptr, b_im_ptr, token_dt_ptr,
        first + start, lanes, group, ROWS, PAIRED,
    )  # fmt: skip
    h_re = tl.zeros([BLOCK_D], tl.float32)
    h_im = tl.zeros([BLOCK_D], tl.float32)
    ONE: tl.constexpr = 0.0 if EXACT else 1.0
    product_re = h_re + ONE
    product_im = tl.zeros([BLOCK_D], tl.float32)
    HOLDS: tl.constexpr = token_dt_ptr is not None
    loops = (end - start) // (UNROLL * AHEAD)
    if loops > 0:
        groups = load_groups(ptrs, ROWS, 4, UNROLL, AHEAD, there)
        for g in range(loops):
            ptrs = move(ptrs, ROWS, tl.where(g + 1 < loops, UNROLL * AHEAD, 0))
            filled = ()
            for k in tl.static_range(AHEAD):
                for _ in range(once):
                    wide = widen(groups[k])
                    for u in tl.static_range(UNROLL):
                        h_re, h_im, gate, hold = step(wide, u, h_re, h_im, channel, TWICE, EXACT)
                        product_re, product_im = lengthen(
                            product_re, product_im, gate, hold, HOLDS, EXACT
                        )
                following = move(ptrs, ROWS, k * UNROLL)
                filled = filled + (load_group(following, ROWS, 4, UNROLL, there),)
            groups = filled
        ptrs = move(ptrs, ROWS, UNROLL * AHEAD)
    for _ in range(end - start - loops * (UNROLL * AHEAD)):
        single = widen(load_group(ptrs, ROWS, 4, 1, there))
        h_re, h_im, gate, hold = step(single, 0, h_re, h_im, channel, TWICE, EXACT)
        product_re, product_im = lengthen(product_re, product_im, gate, hold, HOLDS, EXACT)
        ptrs = move(ptrs, ROWS, 1)
    place = (unit.to(tl.int64) * (GROUPS * WIDTH) + channels) * 4
    store_summary(summary_ptr + place, product_re - ONE, product_im, h_re, h_im, mask)


@triton.jit
def keep_state(ptr, re, im, D: tl.constexpr, mask):
    """Keep a state for the backward pass: a row for the real and one for the imaginary parts."""
    tl.store(ptr, re, mask=mask)
    tl.store(ptr + D, im, mask=mask)


@triton.jit(do_not_specialize=["T", "n_chunks", "chunk_len", "once"])
def forward_kernel(
    alpha_ptr, omega_ptr, dt_ptr, x_ptr, b_re_ptr, b_im_ptr, token_dt_ptr,
    lengths_ptr, offsets_ptr, table_ptr, first_ptr,
    alpha_bias_ptr, omega_bias_ptr, omega_scale_ptr, dt_bias_ptr, c_re_ptr, c_im_ptr,
    initial_ptr, summary_ptr, y_ptr, kept_ptr, final_ptr, T, n_chunks, chunk_len, once,
    ROWS: tl.constexpr, KEEP: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr, UNROLL: tl.constexpr, AHEAD: tl.constexpr,
    PAIRED: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Scan a chunk from the state that the chunks before it leave; write y and the last state.

    summary_ptr None: there is one chunk. kept_ptr None: nothing is kept for the backward pass;
    else the state before every KEEP tokens is, KEEP dividing UNROLL and chunk_len.
    """
    rows = (lengths_ptr, offsets_ptr, table_ptr, first_ptr)
    row, first, length, chunk, chunks, unit, group, _, first_channel = locate(
        T, n_chunks, rows, GROUPS, WIDTH, BLOCK_D
    )
    channels = first_channel + tl.arange(0, BLOCK_D)
    lanes = addressed(first_channel, BLOCK_D, PAIRED)
    TWICE: tl.constexpr = PAIRED and BLOCK_D >= 2 * WIDTH
    group = groups_of(lanes, group, WIDTH, BLOCK_D, PAIRED)
    mask, there = None, None
    if BLOCK_D < 2 * WIDTH and WIDTH % BLOCK_D != 0:
        mask = channels < (group + 1) * WIDTH
        there = lanes < lanes_end(group, WIDTH, PAIRED)
    start, end = span(chunk, chunk_len, length)
    D: tl.constexpr = GROUPS * WIDTH
    parameters = (alpha_bias_ptr, omega_bias_ptr, omega_scale_ptr, dt_bias_ptr)
    channel = load_channel(parameters, channels, mask, EXACT)
    c_re = tl.load(c_re_ptr + channels, mask=mask)
    c_im = tl.load(c_im_ptr + channels, mask=mask)
    token = first + start
    ptrs = inputs_at(
        alpha_ptr, omega_ptr, dt_ptr, x_ptr, b_re_ptr, b_im_ptr, token_dt_ptr,
        token, lanes, group, ROWS, PAIRED,
    )  # fmt: skip
    h_re = tl.zeros([BLOCK_D], tl.float32)
    h_im = tl.zeros([BLOCK_D], tl.float32)
    if initial_ptr is not None:
        h_re, h_im = load_pair(initial_ptr + (row * D + channels) * 2, mask)
    if summary_ptr is not None:
        before = summary_ptr + ((unit - chunk).to(tl.int64) * D + channels) * 4
        h_re, h_im = apply_summaries(before, 4 * D, chunk, h_re, h_im, mask)
    y = y_ptr + token * D + channels
    kept = None
    if kept_ptr is not None:
        place = kept_row(row, first, T, offsets_ptr, KEEP) + start // KEEP
        kept = kept_ptr + place * (2 * D) + channels
    loops = (end - start) // (UNROLL * AHEAD)
    if loops > 0:
        groups = load_groups(ptrs, ROWS, 4, UNROLL, AHEAD, there)
        for g in range(loops):
            ptrs = move(ptrs, ROWS, tl.where(g + 1 < loops, UNROLL * AHEAD, 0))
            filled = ()
            for k in tl.static_range(AHEAD):
                for _ in range(once):
                    wide = widen(groups[k])
                    for u in tl.static_range(UNROLL):
                        if kept_ptr is not None:
                            if u % KEEP == 0:
                                keep_state(kept + (u // KEEP) * (2 * D), h_re, h_im, D, mask)
                        after = step(wide, u, h_re, h_im, channel, TWICE, EXACT)
                        h_re, h_im = after[0], after[1]
                        tl.store(y + u * D, c_re * h_re + c_im * h_im, mask=mask)
                following = move(ptrs, ROWS, k * UNROLL)
                filled = filled + (load_group(following, ROWS, 4, UNROLL, there),)
                y += UNROLL * D
                if kept_ptr is not None:
                    kept += (UNROLL // KEEP) * (2 * D)
            groups = filled
        ptrs = move(ptrs, ROWS, UNROLL * AHEAD)
    for left in range(end - start - loops * (UNROLL * AHEAD)):
        single = widen(load_group(ptrs, ROWS, 4, 1, there))
        if kept_ptr is not None:
            if left % KEEP == 0:
                keep_state(kept + (left // KEEP) * (2 * D), h_re, h_im, D, mask)
        after = step(single, 0, h_re, h_im, channel, TWICE, EXACT)
        h_re, h_im = after[0], after[1]
        tl.store(y, c_re * h_re + c_im * h_im, mask=mask)
        ptrs = move(ptrs, ROWS, 1)
        y += D
    if chunk == chunks - 1:
        store_pair(final_ptr + (row * D + channels) * 2, h_re, h_im, mask)
