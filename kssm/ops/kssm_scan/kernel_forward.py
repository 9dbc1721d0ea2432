"""Triton kernels of the forward scan: a chunk's summary, and the scan itself."""

import triton
import triton.language as tl

from kssm.ops.kssm_scan.kernel_common import (
    advance,
    apply_summary,
    load_channel,
    load_group,
    load_pair,
    locate,
    move,
    span,
    store_pair,
    store_state,
    store_summary,
    token_gates,
    widen,
)


@triton.jit
def _inputs(alpha, omega, dt, x, b_re, b_im, token_dt, token, channels, group, ROWS: tl.constexpr):
    """Pointers to the inputs of ``token`` (counted over all rows), in ROWS' order."""
    ptrs = (
        alpha + token * ROWS[0] + channels,
        omega + token * ROWS[1] + channels,
        dt + token * ROWS[2] + channels,
        x + token * ROWS[3] + channels,
        b_re + token * ROWS[4] + group,
        b_im + token * ROWS[5] + group,
    )
    if token_dt is not None:
        ptrs = ptrs + (token_dt + token,)
    return ptrs


@triton.jit
def _step(values, u: tl.constexpr, h_re, h_im, channel, EXACT: tl.constexpr):
    """(h after token u, its q, s, i2 and whether it holds the state)."""
    factor = 1.0
    hold = False
    if len(values) == 7:
        factor = values[6][u]
        hold = factor == 0.0
    gates = token_gates(values[0][u], values[1][u], values[2][u], factor, channel, EXACT)
    tau, p, q, s, i2 = gates[5:]
    b_re = values[4][u]
    b_im = values[5][u]
    drive = tau * values[3][u]
    new_re, new_im = advance(h_re, h_im, drive, b_re, b_im, p, q, s, i2)
    if len(values) == 7:
        new_re = tl.where(hold, h_re, new_re)
        new_im = tl.where(hold, h_im, new_im)
    return new_re, new_im, q, s, i2, hold


@triton.jit
def _grow(excess_re, excess_im, q, s, i2, hold, HOLDS: tl.constexpr):
    """The product of λ less one, one token longer."""
    new_re = excess_re + i2 * (q * excess_im - s * excess_re - s)
    new_im = excess_im - i2 * (s * excess_im + q * excess_re + q)
    if HOLDS:
        new_re = tl.where(hold, excess_re, new_re)
        new_im = tl.where(hold, excess_im, new_im)
    return new_re, new_im


@triton.jit(do_not_specialize=["T", "n_chunks", "chunk_len", "once"])
def forward_summary_kernel(
    alpha_ptr, omega_ptr, dt_ptr, x_ptr, b_re_ptr, b_im_ptr, token_dt_ptr, lengths_ptr,
    alpha_bias_ptr, omega_bias_ptr, omega_scale_ptr, dt_bias_ptr,
    summary_ptr, T, n_chunks, chunk_len, once,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr, UNROLL: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Per chunk: the product of λ less one and the end state from zero, [B, n_chunks, D, 4]."""
    row, chunk, group, _, channels = locate(n_chunks, GROUPS, WIDTH, BLOCK_D)
    mask = None
    if WIDTH % BLOCK_D != 0:
        mask = channels < (group + 1) * WIDTH
    start, end = span(row, chunk, chunk_len, T, lengths_ptr)
    parameters = (alpha_bias_ptr, omega_bias_ptr, omega_scale_ptr, dt_bias_ptr)
    channel = load_channel(parameters, channels, mask)
    ptrs = _inputs(
        alpha_ptr, omega_ptr, dt_ptr, x_ptr, b_re_ptr, b_im_ptr, token_dt_ptr,
        row * T + start, channels, group, ROWS,
    )  # fmt: skip
    h_re = tl.zeros([BLOCK_D], tl.float32)
    h_im = tl.zeros([BLOCK_D], tl.float32)
    excess_re = tl.zeros([BLOCK_D], tl.float32)
    excess_im = tl.zeros([BLOCK_D], tl.float32)
    HOLDS: tl.constexpr = token_dt_ptr is not None
    groups = (end - start) // UNROLL
    if groups > 0:
        values = load_group(ptrs, ROWS, 4, UNROLL, mask)
        for g in range(groups):
            ptrs = move(ptrs, ROWS, tl.where(g + 1 < groups, UNROLL, 0))
            following = load_group(ptrs, ROWS, 4, UNROLL, mask)
            for _ in range(once):
                wide = widen(values)
                for u in tl.static_range(UNROLL):
                    h_re, h_im, q, s, i2, hold = _step(wide, u, h_re, h_im, channel, EXACT)
                    excess_re, excess_im = _grow(excess_re, excess_im, q, s, i2, hold, HOLDS)
                values = following
        ptrs = move(ptrs, ROWS, UNROLL)
    for _ in range(end - start - groups * UNROLL):
        single = widen(load_group(ptrs, ROWS, 4, 1, mask))
        h_re, h_im, q, s, i2, hold = _step(single, 0, h_re, h_im, channel, EXACT)
        excess_re, excess_im = _grow(excess_re, excess_im, q, s, i2, hold, HOLDS)
        ptrs = move(ptrs, ROWS, 1)
    place = ((row * n_chunks + chunk) * (GROUPS * WIDTH) + channels) * 4
    store_summary(summary_ptr + place, excess_re, excess_im, h_re, h_im, mask)


@triton.jit
def _emit(y_ptr, h_ptr, re, im, c_re, c_im, D: tl.constexpr, mask):
    """Write one token's read-out and, when it is kept for the backward pass, its state."""
    tl.store(y_ptr, c_re * re + c_im * im, mask=mask)
    if h_ptr is not None:
        store_state(h_ptr, re, im, D, mask)


@triton.jit(do_not_specialize=["T", "n_chunks", "chunk_len", "once"])
def forward_kernel(
    alpha_ptr, omega_ptr, dt_ptr, x_ptr, b_re_ptr, b_im_ptr, token_dt_ptr, lengths_ptr,
    alpha_bias_ptr, omega_bias_ptr, omega_scale_ptr, dt_bias_ptr, c_re_ptr, c_im_ptr,
    initial_ptr, summary_ptr, y_ptr, h_ptr, final_ptr, T, n_chunks, chunk_len, once,
    ROWS: tl.constexpr, H_ROWS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr, UNROLL: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Scan a chunk from the state that the chunks before it leave; write y, h and the last state.

    summary_ptr None: there is one chunk. h_ptr None: the states are not kept; else
    H_ROWS counts the rows of D numbers that a token's state takes (see ``store_state``).
    """
    row, chunk, group, _, channels = locate(n_chunks, GROUPS, WIDTH, BLOCK_D)
    mask = None
    if WIDTH % BLOCK_D != 0:
        mask = channels < (group + 1) * WIDTH
    start, end = span(row, chunk, chunk_len, T, lengths_ptr)
    D: tl.constexpr = GROUPS * WIDTH
    parameters = (alpha_bias_ptr, omega_bias_ptr, omega_scale_ptr, dt_bias_ptr)
    channel = load_channel(parameters, channels, mask)
    c_re = tl.load(c_re_ptr + channels, mask=mask)
    c_im = tl.load(c_im_ptr + channels, mask=mask)
    token = row * T + start
    ptrs = _inputs(
        alpha_ptr, omega_ptr, dt_ptr, x_ptr, b_re_ptr, b_im_ptr, token_dt_ptr,
        token, channels, group, ROWS,
    )  # fmt: skip
    h_re = tl.zeros([BLOCK_D], tl.float32)
    h_im = tl.zeros([BLOCK_D], tl.float32)
    if initial_ptr is not None:
        h_re, h_im = load_pair(initial_ptr + (row * D + channels) * 2, mask)
    if summary_ptr is not None:
        for k in range(chunk):
            before = summary_ptr + ((row * n_chunks + k) * D + channels) * 4
            h_re, h_im = apply_summary(before, h_re, h_im, mask)
    y = y_ptr + token * D + channels
    h = None
    if h_ptr is not None:
        h = h_ptr + token * (H_ROWS * D) + channels
    groups = (end - start) // UNROLL
    if groups > 0:
        values = load_group(ptrs, ROWS, 4, UNROLL, mask)
        for g in range(groups):
            ptrs = move(ptrs, ROWS, tl.where(g + 1 < groups, UNROLL, 0))
            following = load_group(ptrs, ROWS, 4, UNROLL, mask)
            for _ in range(once):
                wide = widen(values)
                for u in tl.static_range(UNROLL):
                    after = _step(wide, u, h_re, h_im, channel, EXACT)
                    h_re, h_im = after[0], after[1]
                    _emit(y, h, h_re, h_im, c_re, c_im, D, mask)
                    y += D
                    if h_ptr is not None:
                        h += H_ROWS * D
                values = following
        ptrs = move(ptrs, ROWS, UNROLL)
    for _ in range(end - start - groups * UNROLL):
        single = widen(load_group(ptrs, ROWS, 4, 1, mask))
        after = _step(single, 0, h_re, h_im, channel, EXACT)
        h_re, h_im = after[0], after[1]
        _emit(y, h, h_re, h_im, c_re, c_im, D, mask)
        ptrs = move(ptrs, ROWS, 1)
        y += D
        if h_ptr is not None:
            h += H_ROWS * D
    if chunk == n_chunks - 1:
        store_pair(final_ptr + (row * D + channels) * 2, h_re, h_im, mask)
