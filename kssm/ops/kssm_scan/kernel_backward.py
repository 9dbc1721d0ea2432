"""Triton kernel of the backward pass: the adjoint of every token, and all gradients from it.

A program takes KEEP tokens at a time, the last ones first. Their states are computed once more
from the one kept before them, then the adjoint runs back over them; what the first needs to know
about the tokens for the second stays in registers.

With G the adjoint, R = conj(2 / (1 + z)) G and M the sum of the states before and after a token,
X + i Y = R conj(M), X_b = Re(R conj(b)):

    d_x = tau X_b    d_a = -tau X / 2    d_w = -tau Y / 2    d_D = (x X_b - a X / 2 - w Y / 2) / 2
"""

import triton
import triton.language as tl

from kssm.ops.kssm_scan.kernel_common import (
    apply_summaries,
    clean,
    count_blocks,
    exp2,
    kept_row,
    load_pair,
    locate,
    span,
    step_factor,
    store_pair,
)
from kssm.ops.kssm_scan.kernel_gates import evolve, gates, load_channel, pull
from kssm.ops.kssm_scan.kernel_loads import (
    addressed,
    as_words,
    groups_of,
    lanes_end,
    load_group,
    move,
    spread,
    widen,
)
from kssm.ops.kssm_scan.kernel_sums import sum_channels


@triton.jit
def _inputs(values, u: tl.constexpr, TWICE: tl.constexpr, FACTOR: tl.constexpr):
    """(alpha, omega, dt, x, b_re, b_im, factor) of token u; a held token's are 0."""
    factor = step_factor(values, u, FACTOR)
    found = ()
    for i in tl.static_range(7):
        if i != 4:
            found = found + (clean(values[i][u], factor, FACTOR),)
    b_re = spread(found[4], TWICE)
    b_im = spread(found[5], TWICE)
    return found[0], found[1], found[2], found[3], b_re, b_im, factor


@triton.jit
def _states(
    values, start, channel,
    KEEP: tl.constexpr, TWICE: tl.constexpr, FACTOR: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """(gates of KEEP tokens, the states before each and after the last)."""
    found = ()
    states = (start,)
    for u in tl.static_range(KEEP):
        alpha, omega, dt, x, b_re, b_im, factor = _inputs(values, u, TWICE, FACTOR)
        gate = gates(alpha, omega, dt, factor, channel, EXACT)
        found = found + (gate,)
        drive = gate[0] * x
        states = states + (evolve(states[u][0], states[u][1], drive, b_re, b_im, gate, EXACT),)
    return found, states


@triton.jit
def _gradients(inputs, gate, before, after, g_re, g_im, EXACT: tl.constexpr):
    """(E, d_alpha, d_w, d_dt, d_x, d_b's two summands) of one token from its adjoint G.

    d_w lacks the factor -1 / 2.
    """
    _, _, _, x, b_re, b_im, factor = inputs
    tau, _, _, _, half_a, half_w, slope_a, slope_dt = gate
    r_re, r_im, e_re, e_im = pull(g_re, g_im, gate, EXACT)
    m_re = before[0] + after[0]
    m_im = before[1] + after[1]
    to_x = r_re * b_re + r_im * b_im
    to_a = r_re * m_re + r_im * m_im
    to_w = r_im * m_re - r_re * m_im
    to_step = x * to_x - (half_a * to_a + half_w * to_w)
    drive = tau * x
    d_alpha = (tau * to_a) * (-0.5 * exp2(slope_a))
    d_dt = to_step * ((0.5 * factor) * exp2(slope_dt))
    return e_re, e_im, d_alpha, tau * to_w, d_dt, tau * to_x, drive * r_re, drive * r_im


@triton.jit
def _work(
    values, start, e_re, e_im, sums, c_re, c_im, channel, slope, outputs, left, mask,
    D: tl.constexpr, GROUP: tl.constexpr, BLOCKS: tl.constexpr, SPAN: tl.constexpr,
    KEEP: tl.constexpr, TWICE: tl.constexpr, FACTOR: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """KEEP tokens: write their gradients and return (E, sums). ``left`` None: all are wanted;
    else a number of them and the same for every channel that is there."""
    found, states = _states(values, start, channel, KEEP, TWICE, FACTOR, EXACT)
    to_b = ()
    for u in tl.static_range(KEEP - 1, -1, -1):
        inputs = _inputs(values, u, TWICE, FACTOR)
        dy = values[4][u]
        e_re, e_im, d_alpha, d_w, d_dt, d_x, b_re, b_im = _gradients(
            inputs, found[u], states[u], states[u + 1], e_re + c_re * dy, e_im + c_im * dy, EXACT
        )
        here = mask
        if left is not None:
            here = left[1] > u
        if mask is not None:
            b_re = tl.where(mask, b_re, 0.0)
            b_im = tl.where(mask, b_im, 0.0)
        tl.store(outputs[0] + u * D, d_alpha, mask=here)
        tl.store(outputs[1] + u * D, d_w * slope, mask=here)
        tl.store(outputs[2] + u * D, d_dt, mask=here)
        tl.store(outputs[3] + u * D, d_x, mask=here)
        to_b = to_b + (b_re, b_im)
        sums = (
            sums[0] + d_alpha,
            sums[1] + d_w,
            sums[2] + d_w * inputs[1],
            sums[3] + d_dt,
            sums[4] + dy * states[u + 1][0],
            sums[5] + dy * states[u + 1][1],
        )
    sum_channels(to_b, outputs[4], outputs[5], left, SPAN, BLOCKS, KEEP, GROUP)
    return e_re, e_im, sums


@triton.jit
def _load_tail(ptrs, ROWS: tl.constexpr, left, there, KEEP: tl.constexpr):
    """KEEP tokens of which the first ``left`` count, the others being the last of those again."""
    values = ()
    for i in tl.static_range(len(ROWS)):
        run = ()
        for u in tl.static_range(KEEP):
            place = ptrs[i] + tl.minimum(u, left - 1) * ROWS[i]
            if i < 5:
                run = run + (tl.load(place, mask=there),)
            else:
                run = run + (tl.load(place),)
        values = values + (run,)
    return widen(values)


@triton.jit
def _blank(values, within, KEEP: tl.constexpr):
    """The tokens at and after ``within`` made to leave the state and the adjoint alone."""
    blanked = ()
    for i in tl.static_range(len(values)):
        run = ()
        for u in tl.static_range(KEEP):
            if i == 2:
                run = run + (tl.where(within > u, values[i][u], float("-inf")),)
            elif i < 5:
                run = run + (tl.where(within > u, values[i][u], 0.0),)
            else:
                run = run + (values[i][u],)
        blanked = blanked + (run,)
    return blanked


@triton.jit(do_not_specialize=["T", "n_chunks", "chunk_len", "once"])
def backward_kernel(
    alpha_ptr, omega_ptr, dt_ptr, x_ptr, dy_ptr, b_re_ptr, b_im_ptr, token_dt_ptr,
    lengths_ptr, offsets_ptr, table_ptr, first_ptr,
    alpha_bias_ptr, omega_bias_ptr, omega_scale_ptr, dt_bias_ptr, c_re_ptr, c_im_ptr,
    kept_ptr, final_grad_ptr, summary_ptr,
    d_alpha_ptr, d_omega_ptr, d_dt_ptr, d_x_ptr, d_b_re_ptr, d_b_im_ptr,
    d_parameters_ptr, d_initial_ptr, T, n_chunks, chunk_len, once,
    ROWS: tl.constexpr, KEEP: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr, WARP_D: tl.constexpr, PAIRED: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """All gradients of one chunk, from the adjoint that the chunks after it hand back.

    d_b_*: [tokens, blocks] partial sums; d_parameters: [units, 6, D]; both summed afterwards.
    """
    rows = (lengths_ptr, offsets_ptr, table_ptr, first_ptr)
    row, first, length, chunk, chunks, unit, group, block, first_channel = locate(
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
    SPAN: tl.constexpr = WARP_D if BLOCK_D >= 2 * WIDTH else BLOCK_D
    BLOCKS: tl.constexpr = count_blocks(GROUPS, WIDTH, SPAN)
    block = block * (BLOCK_D // SPAN)
    FACTOR: tl.constexpr = -1 if token_dt_ptr is None else 7
    parameters = (alpha_bias_ptr, omega_bias_ptr, omega_scale_ptr, dt_bias_ptr)
    channel = load_channel(parameters, channels, mask, EXACT)
    slope = channel[2] * (-0.5 if EXACT else -1.0)
    c_re = tl.load(c_re_ptr + channels, mask=mask)
    c_im = tl.load(c_im_ptr + channels, mask=mask)
    full = (end - start) // KEEP
    left = end - start - full * KEEP
    token = first + start + full * KEEP
    ptrs = (
        as_words(alpha_ptr, PAIRED) + token * ROWS[0] + lanes,
        as_words(omega_ptr, PAIRED) + token * ROWS[1] + lanes,
        as_words(dt_ptr, PAIRED) + token * ROWS[2] + lanes,
        as_words(x_ptr, PAIRED) + token * ROWS[3] + lanes,
        as_words(dy_ptr, PAIRED) + token * ROWS[4] + lanes,
        b_re_ptr + token * ROWS[5] + group,
        b_im_ptr + token * ROWS[6] + group,
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
    OUT_ROWS: tl.constexpr = (D, D, D, D, BLOCKS, BLOCKS)
    place = kept_row(row, first, T, offsets_ptr, KEEP) + start // KEEP + full
    kept = kept_ptr + place * (2 * D) + channels
    e_re, e_im = load_pair(final_grad_ptr + (row * D + channels) * 2, mask)
    if summary_ptr is not None:
        after = summary_ptr + ((unit - chunk).to(tl.int64) * D + channels) * 4
        e_re, e_im = apply_summaries(after, 4 * D, chunks - 1 - chunk, e_re, e_im, mask)
    zero = tl.zeros([BLOCK_D], tl.float32)
    sums = (zero, zero, zero, zero, zero, zero)
    if left > 0:
        within = zero.to(tl.int32) + left
        if mask is not None:
            within = tl.where(mask, left, 0)
        state = (tl.load(kept, mask=mask), tl.load(kept + D, mask=mask))
        wide = _blank(_load_tail(ptrs, ROWS, left, there, KEEP), within, KEEP)
        e_re, e_im, sums = _work(
            wide, state, e_re, e_im, sums, c_re, c_im, channel, slope, outputs, (left, within),
            mask, D, WIDTH, BLOCKS, SPAN, KEEP, TWICE, FACTOR, EXACT,
        )  # fmt: skip
    if full > 0:
        ptrs = move(ptrs, ROWS, -KEEP)
        kept -= 2 * D
        values = load_group(ptrs, ROWS, 5, KEEP, there)
        state = (tl.load(kept, mask=mask), tl.load(kept + D, mask=mask))
        for g in range(full):
            outputs = move(outputs, OUT_ROWS, -KEEP)
            ptrs = move(ptrs, ROWS, tl.where(g + 1 < full, -KEEP, 0))
            kept -= tl.where(g + 1 < full, 2 * D, 0)
            following = load_group(ptrs, ROWS, 5, KEEP, there)
            next_state = (tl.load(kept, mask=mask), tl.load(kept + D, mask=mask))
            for _ in range(once):
                e_re, e_im, sums = _work(
                    widen(values), state, e_re, e_im, sums, c_re, c_im, channel, slope, outputs,
                    None, mask, D, WIDTH, BLOCKS, SPAN, KEEP, TWICE, FACTOR, EXACT,
                )  # fmt: skip
                values = following
                state = next_state
    total = d_parameters_ptr + unit.to(tl.int64) * (6 * D) + channels
    omega_bias = tl.load(omega_bias_ptr + channels, mask=mask)
    tl.store(total, sums[0], mask=mask)
    tl.store(total + D, sums[1] * slope, mask=mask)
    tl.store(total + 2 * D, -0.5 * (sums[2] + omega_bias * sums[1]), mask=mask)
    tl.store(total + 3 * D, sums[3], mask=mask)
    tl.store(total + 4 * D, sums[4], mask=mask)
    tl.store(total + 5 * D, sums[5], mask=mask)
    if chunk == 0:
        store_pair(d_initial_ptr + (row * D + channels) * 2, e_re, e_im, mask)
