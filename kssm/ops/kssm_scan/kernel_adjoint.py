"""Triton kernel of the backward pass's first half: what a chunk does to the adjoint.

The adjoint G_t = c dy_t + conj(λ_{t+1}) G_{t+1} runs from the last token to the first; what a
token hands to the one before it is E_t = conj(λ_t) G_t. Pointers walk backwards, so the strides
in ROWS are negative here.
"""

import triton
import triton.language as tl

from kssm.ops.kssm_scan.kernel_common import (
    clean,
    locate,
    span,
    step_factor,
    store_summary,
)
from kssm.ops.kssm_scan.kernel_gates import gates, grow, load_channel, pull
from kssm.ops.kssm_scan.kernel_loads import (
    addressed,
    as_words,
    lanes_end,
    load_group,
    load_groups,
    move,
    widen,
)


@triton.jit
def _pass_on(
    values, u: tl.constexpr, product_re, product_im, e_re, e_im, c_re, c_im, channel,
    FACTOR: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The product of λ and E, one token longer; values are alpha, omega, dt, dy[, factor]."""
    factor = step_factor(values, u, FACTOR)
    alpha = clean(values[0][u], factor, FACTOR)
    omega = clean(values[1][u], factor, FACTOR)
    dt = clean(values[2][u], factor, FACTOR)
    gate = gates(alpha, omega, dt, factor, channel, EXACT)
    dy = values[3][u]
    _, _, e_re, e_im = pull(e_re + c_re * dy, e_im + c_im * dy, gate, EXACT)
    product_re, product_im = grow(product_re, product_im, gate, EXACT)
    return product_re, product_im, e_re, e_im


@triton.jit(do_not_specialize=["T", "n_chunks", "chunk_len", "once"])
def backward_summary_kernel(
    alpha_ptr, omega_ptr, dt_ptr, dy_ptr, token_dt_ptr,
    lengths_ptr, offsets_ptr, table_ptr, first_ptr,
    alpha_bias_ptr, omega_bias_ptr, omega_scale_ptr, dt_bias_ptr, c_re_ptr, c_im_ptr,
    summary_ptr, T, n_chunks, chunk_len, once,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr, UNROLL: tl.constexpr, AHEAD: tl.constexpr,
    PAIRED: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Per chunk: the product of conj(λ) less one, and the E it hands on when handed none.

    The layout is the forward summary's, [units, D, 4], but that a row's chunks follow each other
    in the adjoint's order: the last one first. Nobody reads the first chunk's: it is left out.
    """
    rows = (lengths_ptr, offsets_ptr, table_ptr, first_ptr)
    _, first, length, chunk, chunks, unit, group, _, first_channel = locate(
        T, n_chunks, rows, GROUPS, WIDTH, BLOCK_D
    )
    channels = first_channel + tl.arange(0, BLOCK_D)
    lanes = addressed(first_channel, BLOCK_D, PAIRED)
    mask, there = None, None
    if BLOCK_D < 2 * WIDTH and WIDTH % BLOCK_D != 0:
        mask = channels < (group + 1) * WIDTH
        there = lanes < lanes_end(group, WIDTH, PAIRED)
    start, end = span(chunk, chunk_len, length)
    end = tl.where(chunk == 0, start, end)
    parameters = (alpha_bias_ptr, omega_bias_ptr, omega_scale_ptr, dt_bias_ptr)
    channel = load_channel(parameters, channels, mask, EXACT)
    c_re = tl.load(c_re_ptr + channels, mask=mask)
    c_im = tl.load(c_im_ptr + channels, mask=mask)
    token = first + end - 1
    ptrs = (
        as_words(alpha_ptr, PAIRED) - token * ROWS[0] + lanes,
        as_words(omega_ptr, PAIRED) - token * ROWS[1] + lanes,
        as_words(dt_ptr, PAIRED) - token * ROWS[2] + lanes,
        as_words(dy_ptr, PAIRED) - token * ROWS[3] + lanes,
    )
    FACTOR: tl.constexpr = -1 if token_dt_ptr is None else 4
    if token_dt_ptr is not None:
        ptrs = ptrs + (token_dt_ptr + token,)
    e_re = tl.zeros([BLOCK_D], tl.float32)
    e_im = tl.zeros([BLOCK_D], tl.float32)
    ONE: tl.constexpr = 0.0 if EXACT else 1.0
    product_re = e_re + ONE
    product_im = tl.zeros([BLOCK_D], tl.float32)
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
                        product_re, product_im, e_re, e_im = _pass_on(
                            wide, u, product_re, product_im, e_re, e_im, c_re, c_im, channel,
                            FACTOR, EXACT,
                        )  # fmt: skip
                following = move(ptrs, ROWS, k * UNROLL)
                filled = filled + (load_group(following, ROWS, 4, UNROLL, there),)
            groups = filled
        ptrs = move(ptrs, ROWS, UNROLL * AHEAD)
    for _ in range(end - start - loops * (UNROLL * AHEAD)):
        single = widen(load_group(ptrs, ROWS, 4, 1, there))
        product_re, product_im, e_re, e_im = _pass_on(
            single, 0, product_re, product_im, e_re, e_im, c_re, c_im, channel, FACTOR, EXACT
        )
        ptrs = move(ptrs, ROWS, 1)
    turned = (unit - chunk + chunks - 1 - chunk).to(tl.int64)
    place = (turned * (GROUPS * WIDTH) + channels) * 4
    live = tl.zeros([BLOCK_D], tl.int32) + chunks > chunk
    if mask is not None:
        live = tl.where(mask, chunks, 0) > chunk
    store_summary(summary_ptr + place, product_re - ONE, -product_im, e_re, e_im, live)
