"""Triton kernel of the backward pass: the adjoint of every token, and all gradients from it.

The adjoint G_t = c dy_t + conj(λ_{t+1}) G_{t+1} runs from the last token to the first; what a
token hands to the one before it is E_t = conj(λ_t) G_t. Pointers walk backwards, so the strides
in ROWS are negative here.
"""

import triton
import triton.language as tl

from kssm.ops.kssm_scan.kernel_common import (
    apply_summary,
    clean,
    clean_gates,
    load_channel,
    load_group,
    load_pair,
    locate,
    move,
    sigmoid_of,
    span,
    step_factor,
    store_pair,
    unpack_pair,
    widen,
)


@triton.jit
def _gradients(
    values, u: tl.constexpr, g_re, g_im, now_re, now_im, before_re, before_im, channel,
    LANES: tl.constexpr, FACTOR: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """(E, d_alpha, d_omega, d_dt, d_x, d_b summand, 2 dw, omega) of token u from its adjoint G.

    With K = conj(γ) G, R = conj(1 / (p + iq)) G and the sum m of the states before and after:
    d_u = K, ds = -K conj(m) / 2, dD = Re(R conj(u - s m / 2)); s is a + i w here.
    """
    factor = step_factor(values, u, FACTOR)
    raw_alpha, raw_dt, a, w, step, tau, p, q, s, i2 = clean_gates(
        values, u, factor, channel, FACTOR, EXACT
    )
    x = clean(values[3][u], factor, FACTOR)
    b_re = clean(values[LANES][u], factor, FACTOR)
    b_im = clean(values[LANES + 1][u], factor, FACTOR)
    scaled_re = i2 * g_re
    scaled_im = i2 * g_im
    e_re = g_re - (s * scaled_re + q * scaled_im)
    e_im = g_im - (s * scaled_im - q * scaled_re)
    r_re = p * scaled_re - q * scaled_im
    r_im = p * scaled_im + q * scaled_re
    k_re = tau * r_re
    k_im = tau * r_im
    m_re = now_re + before_re
    m_im = now_im + before_im
    twice = x + x
    n_re = twice * b_re - a * m_re + w * m_im
    n_im = twice * b_im - a * m_im - w * m_re
    d_alpha = (k_re * m_re + k_im * m_im) * (-0.5 * sigmoid_of(raw_alpha, a))
    d_w = k_re * m_im - k_im * m_re
    d_dt = (r_re * n_re + r_im * n_im) * ((0.25 * factor) * sigmoid_of(raw_dt, step))
    d_x = b_re * k_re + b_im * k_im
    omega = clean(values[1][u], factor, FACTOR)
    return e_re, e_im, d_alpha, d_w, d_dt, d_x, k_re * x, k_im * x, omega


@triton.jit
def _before(values, u: tl.constexpr, LANES: tl.constexpr):
    """The state before token u: values[5] holds packed words, or values[5] and [6] its parts."""
    if LANES == 6:
        re, im = unpack_pair(values[5][u])
    else:
        re = values[5][u]
        im = values[6][u]
    return re, im


@triton.jit
def _load_state(ptr, D: tl.constexpr, PACKED: tl.constexpr, mask):
    """One stored state."""
    if PACKED:
        re, im = unpack_pair(tl.load(ptr, mask=mask))
    else:
        re = tl.load(ptr, mask=mask)
        im = tl.load(ptr + D, mask=mask)
    return re, im


@triton.jit
def _write(outputs, found, half_scale, D: tl.constexpr, BLOCKS: tl.constexpr, u, mask):
    """Store token u's gradients; d_b is summed over the program's channels."""
    tl.store(outputs[0] - u * D, found[2], mask=mask)
    tl.store(outputs[1] - u * D, found[3] * half_scale, mask=mask)
    tl.store(outputs[2] - u * D, found[4], mask=mask)
    tl.store(outputs[3] - u * D, found[5], mask=mask)
    b_re = found[6]
    b_im = found[7]
    if mask is not None:
        b_re = tl.where(mask, b_re, 0.0)
        b_im = tl.where(mask, b_im, 0.0)
    tl.store(outputs[4] - u * BLOCKS, tl.sum(b_re, 0))
    tl.store(outputs[5] - u * BLOCKS, tl.sum(b_im, 0))


@triton.jit
def _accumulate(sums, found, dy, now_re, now_im):
    """One more token in the parameters' gradients (those of w still to be scaled)."""
    return (
        sums[0] + found[2],
        sums[1] + found[3],
        sums[2] + found[3] * found[8],
        sums[3] + found[4],
        sums[4] + dy * now_re,
        sums[5] + dy * now_im,
    )


@triton.jit(do_not_specialize=["T", "n_chunks", "chunk_len", "once"])
def backward_kernel(
    alpha_ptr, omega_ptr, dt_ptr, x_ptr, b_re_ptr, b_im_ptr, token_dt_ptr, lengths_ptr,
    alpha_bias_ptr, omega_bias_ptr, omega_scale_ptr, dt_bias_ptr, c_re_ptr, c_im_ptr,
    initial_ptr, h_ptr, dy_ptr, final_grad_ptr, summary_ptr,
    d_alpha_ptr, d_omega_ptr, d_dt_ptr, d_x_ptr, d_b_re_ptr, d_b_im_ptr,
    d_parameters_ptr, d_initial_ptr, T, n_chunks, chunk_len, once,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr, UNROLL: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """All gradients of one chunk, from the adjoint that the chunks after it hand back.

    h_ptr has one row of states more than there are tokens: row i + 1 is the state after token i.
    d_b_*: [B T, blocks] partial sums; d_parameters: [B, n_chunks, 6, D]; both summed afterwards.
    """
    row, chunk, group, block, channels = locate(n_chunks, GROUPS, WIDTH, BLOCK_D)
    mask = None
    if WIDTH % BLOCK_D != 0:
        mask = channels < (group + 1) * WIDTH
    start, end = span(row, chunk, chunk_len, T, lengths_ptr)
    D: tl.constexpr = GROUPS * WIDTH
    BLOCKS: tl.constexpr = GROUPS * ((WIDTH + BLOCK_D - 1) // BLOCK_D)
    PACKED: tl.constexpr = h_ptr.dtype.element_ty == tl.int32
    LANES: tl.constexpr = 6 if PACKED else 7
    FACTOR: tl.constexpr = -1 if token_dt_ptr is None else LANES + 2
    parameters = (alpha_bias_ptr, omega_bias_ptr, omega_scale_ptr, dt_bias_ptr)
    channel = load_channel(parameters, channels, mask)
    half_scale = 0.5 * channel[2]
    c_re = tl.load(c_re_ptr + channels, mask=mask)
    c_im = tl.load(c_im_ptr + channels, mask=mask)
    token = row * T + end - 1
    state = h_ptr + channels - token * ROWS[5]
    ptrs = (
        alpha_ptr - token * ROWS[0] + channels,
        omega_ptr - token * ROWS[1] + channels,
        dt_ptr - token * ROWS[2] + channels,
        x_ptr - token * ROWS[3] + channels,
        dy_ptr - token * ROWS[4] + channels,
        state,
    )
    if not PACKED:
        ptrs = ptrs + (state + D,)
    ptrs = ptrs + (
        b_re_ptr - token * ROWS[LANES] + group,
        b_im_ptr - token * ROWS[LANES + 1] + group,
    )
    if token_dt_ptr is not None:
        ptrs = ptrs + (token_dt_ptr + token,)
    place = token * D + channels
    outputs = (
        d_alpha_ptr + place,
        d_omega_ptr + place,
        d_dt_ptr + place,
        d_x_ptr + place,
        d_b_re_ptr + token * BLOCKS + block,
        d_b_im_ptr + token * BLOCKS + block,
    )
    OUT_ROWS: tl.constexpr = (-D, -D, -D, -D, -BLOCKS, -BLOCKS)
    now_re, now_im = _load_state(state - ROWS[5], D, PACKED, mask)
    e_re, e_im = load_pair(final_grad_ptr + (row * D + channels) * 2, mask)
    if summary_ptr is not None:
        for k in range(n_chunks - 1 - chunk):
            after = summary_ptr + ((row * n_chunks + n_chunks - 1 - k) * D + channels) * 4
            e_re, e_im = apply_summary(after, e_re, e_im, mask)
    zero = tl.zeros([BLOCK_D], tl.float32)
    sums = (zero, zero, zero, zero, zero, zero)
    groups = tl.maximum(end - tl.maximum(start, 1), 0) // UNROLL
    if groups > 0:
        values = load_group(ptrs, ROWS, LANES, UNROLL, mask)
        for g in range(groups):
            ptrs = move(ptrs, ROWS, tl.where(g + 1 < groups, UNROLL, 0))
            following = load_group(ptrs, ROWS, LANES, UNROLL, mask)
            for _ in range(once):
                wide = widen(values)
                for u in tl.static_range(UNROLL):
                    before_re, before_im = _before(wide, u, LANES)
                    dy = wide[4][u]
                    found = _gradients(
                        wide, u, e_re + c_re * dy, e_im + c_im * dy,
                        now_re, now_im, before_re, before_im, channel, LANES, FACTOR, EXACT,
                    )  # fmt: skip
                    _write(outputs, found, half_scale, D, BLOCKS, u, mask)
                    sums = _accumulate(sums, found, dy, now_re, now_im)
                    e_re, e_im = found[0], found[1]
                    now_re, now_im = before_re, before_im
                values = following
            outputs = move(outputs, OUT_ROWS, UNROLL)
        ptrs = move(ptrs, ROWS, UNROLL)
    first_re, first_im = zero, zero
    if initial_ptr is not None:
        first_re, first_im = load_pair(initial_ptr + (row * D + channels) * 2, mask)
    for left in range(end - start - groups * UNROLL):
        single = widen(load_group(ptrs, ROWS, LANES, 1, mask))
        before_re, before_im = _before(single, 0, LANES)
        at_first = end - groups * UNROLL - left == 1
        before_re = tl.where(at_first, first_re, before_re)
        before_im = tl.where(at_first, first_im, before_im)
        dy = single[4][0]
        found = _gradients(
            single, 0, e_re + c_re * dy, e_im + c_im * dy,
            now_re, now_im, before_re, before_im, channel, LANES, FACTOR, EXACT,
        )  # fmt: skip
        _write(outputs, found, half_scale, D, BLOCKS, 0, mask)
        sums = _accumulate(sums, found, dy, now_re, now_im)
        e_re, e_im = found[0], found[1]
        now_re, now_im = before_re, before_im
        ptrs = move(ptrs, ROWS, 1)
        outputs = move(outputs, OUT_ROWS, 1)
    total = d_parameters_ptr + (row * n_chunks + chunk) * (6 * D) + channels
    omega_bias = tl.load(omega_bias_ptr + channels, mask=mask)
    tl.store(total, sums[0], mask=mask)
    tl.store(total + D, sums[1] * half_scale, mask=mask)
    tl.store(total + 2 * D, 0.5 * (sums[2] + omega_bias * sums[1]), mask=mask)
    tl.store(total + 3 * D, sums[3], mask=mask)
    tl.store(total + 4 * D, sums[4], mask=mask)
    tl.store(total + 5 * D, sums[5], mask=mask)
    if chunk == 0:
        store_pair(d_initial_ptr + (row * D + channels) * 2, e_re, e_im, mask)
