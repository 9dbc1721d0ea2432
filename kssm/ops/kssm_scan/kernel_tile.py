"""Triton kernel of the forward scan in one pass over the inputs, for 16-bit inputs.

A program takes a tile of S N tokens: S rows (one warp each) of N consecutive tokens. Every row
runs from a zero state and keeps, for each token, the read-out y and the product of λ up to it.
A scan over the rows gives the tile's own map, which goes on the board at once; the state that the
tiles before leave is put together from the board, S tiles at a time, backwards until one is found
whose end state is known. Then each row's y gets what the state handed to it contributes.
"""

import triton
import triton.language as tl

from kssm.ops.kssm_scan.kernel_board import (
    compose,
    compose_both,
    take_turn,
    wait_for,
    write_pair,
    write_quad,
)
from kssm.ops.kssm_scan.kernel_common import (
    count_blocks,
    find_channels,
    find_row,
    kept_row,
    load_pair,
)
from kssm.ops.kssm_scan.kernel_gates import evolve, gates, grow, load_channel
from kssm.ops.kssm_scan.kernel_loads import (
    addressed,
    as_words,
    groups_of,
    lanes_end,
    spread,
    widen_run,
)


@triton.jit
def _run(place, ROW: tl.constexpr, N: tl.constexpr, valid, there):
    """N tokens of each row, [S, lanes or 1] each."""
    run = ()
    for j in tl.static_range(N):
        mask = there
        if valid is not None:
            mask = valid > j
            if there is not None:
                mask = mask & there
        run = run + (tl.load(place + j * ROW, mask=mask),)
    return run


@triton.jit
def _last(value, row, S: tl.constexpr):
    """The last row of [S, BLOCK_D]."""
    return tl.sum(tl.where(row == S - 1, value, 0.0), 0)


@triton.jit
def _look_back(
    quads, pairs, chunk, initial_re, initial_im, row, there,
    D: tl.constexpr, S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The state before ``chunk``, [BLOCK_D], from the board's entries of its row."""
    product_re = tl.full([BLOCK_D], 1.0, tl.float32)
    product_im = tl.zeros([BLOCK_D], tl.float32)
    state_re = tl.zeros([BLOCK_D], tl.float32)
    state_im = tl.zeros([BLOCK_D], tl.float32)
    position = chunk - 1
    pending = 1
    while pending > 0:
        index = position - (S - 1) + row
        mask = tl.broadcast_to(index >= 0, [S, BLOCK_D])
        if there is not None:
            mask = mask & tl.broadcast_to(there[None, :], [S, BLOCK_D])
        offset = index.to(tl.int64) * D
        a_re, a_im, s_re, s_im = wait_for(quads + offset * 4, pairs + offset * 2, mask)
        s_re = tl.where(index == -1, initial_re[None, :], s_re)
        s_im = tl.where(index == -1, initial_im[None, :], s_im)
        a_re, a_im, s_re, s_im = tl.associative_scan((a_re, a_im, s_re, s_im), 0, compose)
        product_re, product_im, state_re, state_im = compose(
            _last(a_re, row, S), _last(a_im, row, S), _last(s_re, row, S), _last(s_im, row, S),
            product_re, product_im, state_re, state_im,
        )  # fmt: skip
        position -= S
        open_ = tl.max(tl.abs(product_re) + tl.abs(product_im), 0)
        pending = tl.where((open_ > 0.0) & (position >= -1), 1, 0)
    return state_re, state_im


@triton.jit
def _tokens(
    alpha, omega, dt, x, b_re, b_im, token_dt, token, lanes, group, valid, there,
    ROWS: tl.constexpr, N: tl.constexpr, PAIRED: tl.constexpr,
):  # fmt: skip
    """N tokens of each row, all asked for before any is used: values[tensor][token]."""
    values = (
        _run(as_words(alpha, PAIRED) + token * ROWS[0] + lanes, ROWS[0], N, valid, there),
        _run(as_words(omega, PAIRED) + token * ROWS[1] + lanes, ROWS[1], N, valid, there),
        _run(as_words(dt, PAIRED) + token * ROWS[2] + lanes, ROWS[2], N, valid, there),
        _run(as_words(x, PAIRED) + token * ROWS[3] + lanes, ROWS[3], N, valid, there),
        _run(b_re + token * ROWS[4] + group, ROWS[4], N, valid, None),
        _run(b_im + token * ROWS[5] + group, ROWS[5], N, valid, None),
    )
    if token_dt is not None:
        values = values + (_run(token_dt + token, 1, N, valid, None),)
    return values


@triton.jit
def _sweep(
    values, channel, c_re, c_im, valid,
    S: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr, TWICE: tl.constexpr,
):  # fmt: skip
    """(y, products, states) after each of N tokens of every row, from zero states."""
    h_re = tl.zeros([S, BLOCK_D], tl.float32)
    h_im = tl.zeros([S, BLOCK_D], tl.float32)
    p_re = tl.full([S, BLOCK_D], 1.0, tl.float32)
    p_im = tl.zeros([S, BLOCK_D], tl.float32)
    ys = ()
    products = ()
    states = ()
    for j in tl.static_range(N):
        factor = 1.0
        if len(values) == 7:
            factor = values[6][j]
        gate = gates(values[0][j], values[1][j], values[2][j], factor, channel, False)
        new_re, new_im = evolve(
            h_re,
            h_im,
            gate[0] * values[3][j],
            spread(values[4][j], TWICE),
            spread(values[5][j], TWICE),
            gate,
            False,
        )
        next_re, next_im = grow(p_re, p_im, gate, False)
        if len(values) == 7:
            hold = factor == 0.0
            new_re, new_im = tl.where(hold, h_re, new_re), tl.where(hold, h_im, new_im)
            next_re, next_im = tl.where(hold, p_re, next_re), tl.where(hold, p_im, next_im)
        if valid is not None:
            here = valid > j
            new_re, new_im = tl.where(here, new_re, h_re), tl.where(here, new_im, h_im)
            next_re, next_im = tl.where(here, next_re, p_re), tl.where(here, next_im, p_im)
        h_re, h_im, p_re, p_im = new_re, new_im, next_re, next_im
        ys = ys + (c_re * h_re + c_im * h_im,)
        products = products + ((p_re, p_im),)
        states = states + ((h_re, h_im),)
    return ys, products, states


@triton.jit(do_not_specialize=["T", "n_chunks", "n_rows"])
def tile_kernel(
    alpha_ptr, omega_ptr, dt_ptr, x_ptr, b_re_ptr, b_im_ptr, token_dt_ptr,
    lengths_ptr, offsets_ptr, table_ptr, first_ptr,
    alpha_bias_ptr, omega_bias_ptr, omega_scale_ptr, dt_bias_ptr, c_re_ptr, c_im_ptr,
    initial_ptr, quads_ptr, pairs_ptr, counter_ptr, y_ptr, kept_ptr, final_ptr,
    T, n_chunks, n_rows,
    ROWS: tl.constexpr, KEEP: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr, S: tl.constexpr, N: tl.constexpr, WHOLE: tl.constexpr,
    PAIRED: tl.constexpr,
):  # fmt: skip
    """y, the last state and, with kept_ptr, the state before every KEEP tokens (KEEP divides N).

    WHOLE: every tile is full. Tiles are taken in the order of time, all rows of a batch in turn.
    """
    D: tl.constexpr = GROUPS * WIDTH
    BLOCKS: tl.constexpr = count_blocks(GROUPS, WIDTH, BLOCK_D)
    turn = take_turn(counter_ptr)
    block = turn % BLOCKS
    unit = turn // BLOCKS
    if offsets_ptr is None:
        unit = (unit % n_rows) * n_chunks + unit // n_rows
    rows = (lengths_ptr, offsets_ptr, table_ptr, first_ptr)
    batch, first, length, chunk, chunks = find_row(unit, T, n_chunks, rows)
    group, first_channel = find_channels(block, WIDTH, BLOCK_D)
    channels = first_channel + tl.arange(0, BLOCK_D)
    lanes = addressed(first_channel, BLOCK_D, PAIRED)[None, :]
    TWICE: tl.constexpr = PAIRED and BLOCK_D >= 2 * WIDTH
    of = groups_of(lanes, group, WIDTH, BLOCK_D, PAIRED)
    mask, there = None, None
    if BLOCK_D < 2 * WIDTH and WIDTH % BLOCK_D != 0:
        mask = channels < (group + 1) * WIDTH
        there = lanes < lanes_end(group, WIDTH, PAIRED)
    parameters = (alpha_bias_ptr, omega_bias_ptr, omega_scale_ptr, dt_bias_ptr)
    shared = load_channel(parameters, channels, mask, False)
    channel = (shared[0][None, :], shared[1][None, :], shared[2][None, :], shared[3][None, :])
    c_re = tl.load(c_re_ptr + channels, mask=mask)[None, :]
    c_im = tl.load(c_im_ptr + channels, mask=mask)[None, :]
    row = tl.arange(0, S)[:, None]
    start = chunk * (S * N) + row * N
    valid = None
    if not WHOLE:
        valid = length - start
    token = first + start
    values = _tokens(
        alpha_ptr, omega_ptr, dt_ptr, x_ptr, b_re_ptr, b_im_ptr, token_dt_ptr,
        token, lanes, of, valid, there, ROWS, N, PAIRED,
    )  # fmt: skip
    wide = ()
    for i in tl.static_range(len(values)):
        wide = wide + (widen_run(values[i]),)
    ys, products, states = _sweep(wide, channel, c_re, c_im, valid, S, N, BLOCK_D, TWICE)
    own = (products[N - 1][0], products[N - 1][1], states[N - 1][0], states[N - 1][1])
    nothing = tl.zeros([S, BLOCK_D], tl.float32)
    maps = (nothing + 1.0, nothing, nothing, nothing) + own
    b_re, b_im, t_re, t_im, a_re, a_im, s_re, s_im = tl.associative_scan(maps, 0, compose_both)
    base = (unit - chunk).to(tl.int64) * D + channels[None, :]
    last = tl.broadcast_to(row == S - 1, [S, BLOCK_D])
    if mask is not None:
        last = last & tl.broadcast_to(mask[None, :], [S, BLOCK_D])
    entry = base + chunk.to(tl.int64) * D + tl.zeros([S, 1], tl.int64)
    write_quad(quads_ptr + entry * 4, a_re, a_im, s_re, s_im, last)
    in_re = tl.zeros([BLOCK_D], tl.float32)
    in_im = tl.zeros([BLOCK_D], tl.float32)
    if initial_ptr is not None:
        in_re, in_im = load_pair(initial_ptr + (batch * D + channels) * 2, mask)
    in_re, in_im = _look_back(
        quads_ptr + base * 4, pairs_ptr + base * 2, chunk, in_re, in_im, row, mask, D, S, BLOCK_D
    )
    in_re, in_im = in_re[None, :], in_im[None, :]
    out_re = a_re * in_re - a_im * in_im + s_re
    out_im = a_re * in_im + a_im * in_re + s_im
    write_pair(pairs_ptr + entry * 2, out_re, out_im, last)
    if chunk == chunks - 1:
        place = final_ptr + (batch * D + channels[None, :]) * 2 + tl.zeros([S, 1], tl.int32)
        tl.store(place, out_re, mask=last)
        tl.store(place + 1, out_im, mask=last)
    from_re = b_re * in_re - b_im * in_im + t_re
    from_im = b_re * in_im + b_im * in_re + t_im
    g_re = c_re * from_re + c_im * from_im
    g_im = c_re * from_im - c_im * from_re
    y = y_ptr + token * D + channels[None, :]
    kept = None
    if kept_ptr is not None:
        kept = kept_row(batch, first, T, offsets_ptr, KEEP) + start // KEEP
        kept = kept_ptr + kept * (2 * D) + channels[None, :]
    for j in tl.static_range(N):
        here = None
        if valid is not None:
            here = valid > j
        if mask is not None:
            here = mask[None, :] if here is None else here & mask[None, :]
        tl.store(y + j * D, ys[j] + (products[j][0] * g_re - products[j][1] * g_im), mask=here)
        if kept_ptr is not None:
            if j % KEEP == 0:
                k_re, k_im = from_re, from_im
                if j > 0:
                    p_re, p_im = products[j - 1]
                    k_re = p_re * from_re - p_im * from_im + states[j - 1][0]
                    k_im = p_re * from_im + p_im * from_re + states[j - 1][1]
                tl.store(kept + (j // KEEP) * (2 * D), k_re, mask=here)
                tl.store(kept + (j // KEEP) * (2 * D) + D, k_im, mask=here)
