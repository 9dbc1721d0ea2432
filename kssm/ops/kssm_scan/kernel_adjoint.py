"""Triton kernel of the backward pass's first half: what a chunk does to the adjoint.

The adjoint G_t = c dy_t + conj(λ_{t+1}) G_{t+1} runs from the last token to the first; what a
token hands to the one before it is E_t = conj(λ_t) G_t. Pointers walk backwards, so the strides
in ROWS are negative here.
"""

import triton
import triton.language as tl

from kssm.ops.kssm_scan.kernel_common import (
    clean_gates,
    load_channel,
    load_group,
    locate,
    move,
    span,
    step_factor,
    store_summary,
    widen,
)


@triton.jit
def _pull(re, im, q, s, i2):
    """conj(λ) (re + i im)."""
    return re - i2 * (s * re + q * im), im - i2 * (s * im - q * re)


@triton.jit
def _grow(excess_re, excess_im, q, s, i2):
    """The product of conj(λ) less one, one token longer."""
    new_re = excess_re - i2 * (s * excess_re + q * excess_im + s)
    return new_re, excess_im - i2 * (s * excess_im - q * excess_re - q)


@triton.jit
def _summary_step(
    values, u: tl.constexpr, excess_re, excess_im, e_re, e_im, c_re, c_im, channel,
    FACTOR: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The product less one and E, one token longer; values are alpha, omega, dt, dy[, factor]."""
    factor = step_factor(values, u, FACTOR)
    gates = clean_gates(values, u, factor, channel, FACTOR, EXACT)
    q, s, i2 = gates[7:]
    g_re = e_re + c_re * values[3][u]
    g_im = e_im + c_im * values[3][u]
    e_re, e_im = _pull(g_re, g_im, q, s, i2)
    excess_re, excess_im = _grow(excess_re, excess_im, q, s, i2)
    return excess_re, excess_im, e_re, e_im


@triton.jit(do_not_specialize=["T", "n_chunks", "chunk_len", "once"])
def backward_summary_kernel(
    alpha_ptr, omega_ptr, dt_ptr, dy_ptr, token_dt_ptr, lengths_ptr,
    alpha_bias_ptr, omega_bias_ptr, omega_scale_ptr, dt_bias_ptr, c_re_ptr, c_im_ptr,
    summary_ptr, T, n_chunks, chunk_len, once,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr, UNROLL: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Per chunk: the product of conj(λ) less one, and the E it hands on when handed none.

    The layout is the forward summary's, [B, n_chunks, D, 4].
    """
    row, chunk, group, _, channels = locate(n_chunks, GROUPS, WIDTH, BLOCK_D)
    mask = None
    if WIDTH % BLOCK_D != 0:
        mask = channels < (group + 1) * WIDTH
    start, end = span(row, chunk, chunk_len, T, lengths_ptr)
    parameters = (alpha_bias_ptr, omega_bias_ptr, omega_scale_ptr, dt_bias_ptr)
    channel = load_channel(parameters, channels, mask)
    c_re = tl.load(c_re_ptr + channels, mask=mask)
    c_im = tl.load(c_im_ptr + channels, mask=mask)
    token = row * T + end - 1
    ptrs = (
        alpha_ptr - token * ROWS[0] + channels,
        omega_ptr - token * ROWS[1] + channels,
        dt_ptr - token * ROWS[2] + channels,
        dy_ptr - token * ROWS[3] + channels,
    )
    FACTOR: tl.constexpr = -1 if token_dt_ptr is None else 4
    if token_dt_ptr is not None:
        ptrs = ptrs + (token_dt_ptr + token,)
    e_re = tl.zeros([BLOCK_D], tl.float32)
    e_im = tl.zeros([BLOCK_D], tl.float32)
    excess_re = tl.zeros([BLOCK_D], tl.float32)
    excess_im = tl.zeros([BLOCK_D], tl.float32)
    groups = (end - start) // UNROLL
    if groups > 0:
        values = load_group(ptrs, ROWS, 4, UNROLL, mask)
        for g in range(groups):
            ptrs = move(ptrs, ROWS, tl.where(g + 1 < groups, UNROLL, 0))
            following = load_group(ptrs, ROWS, 4, UNROLL, mask)
            for _ in range(once):
                wide = widen(values)
                for u in tl.static_range(UNROLL):
                    excess_re, excess_im, e_re, e_im = _summary_step(
                        wide, u, excess_re, excess_im, e_re, e_im, c_re, c_im, channel,
                        FACTOR, EXACT,
                    )  # fmt: skip
                values = following
        ptrs = move(ptrs, ROWS, UNROLL)
    for _ in range(end - start - groups * UNROLL):
        single = widen(load_group(ptrs, ROWS, 4, 1, mask))
        excess_re, excess_im, e_re, e_im = _summary_step(
            single, 0, excess_re, excess_im, e_re, e_im, c_re, c_im, channel, FACTOR, EXACT
        )
        ptrs = move(ptrs, ROWS, 1)
    place = ((row * n_chunks + chunk) * (GROUPS * WIDTH) + channels) * 4
    store_summary(summary_ptr + place, excess_re, excess_im, e_re, e_im, mask)
