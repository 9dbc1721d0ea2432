"""Triton kernels of the gates' gradients; the forward ones are in ``kernel_gates``."""

import triton
import triton.language as tl

from kssm.ops.matrix_scan.kernel_gates import (
    LIMIT,
    group_tokens,
    head_tokens,
    load_pairs,
    slowed,
    softplus,
    store_pairs,
)


@triton.jit
def sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def added_parts(place, step, mask, PARTS: tl.constexpr, N: tl.constexpr):
    """The sum of PARTS times real and imaginary parts, ``step`` numbers apart."""
    re, im = load_pairs(place, mask, N)
    for part in tl.static_range(1, PARTS):
        more_re, more_im = load_pairs(place + part * step, mask, N)
        re += more_re
        im += more_im
    return re, im


@triton.jit
def turned_back(turned, target, re, im, cos, sin, mask, within, N: tl.constexpr):
    """Stores the gradient (re, im) of turned numbers as that of what they were before; returns what
    it says of their angles and of their sizes.

    It takes them as rounded as the products did, so that what a token says to itself cancels.
    """
    store_pairs(target, re * cos + im * sin, im * cos - re * sin, within, N)
    own_re, own_im = load_pairs(turned, mask, N)
    return im * own_re - re * own_im, re * own_re + im * own_im


@triton.jit
def flow_behind(
    flow_ptr, at, mask_n, n, N: tl.constexpr, SHARING: tl.constexpr, HEADS: tl.constexpr
):  # fmt: skip
    """[N]: what turning the state behind a chunk changes, over the heads of a group."""
    head = tl.arange(0, HEADS)
    place = flow_ptr + (at * SHARING + head)[:, None] * (2 * N) + n[None, :]
    re, im = load_pairs(place, (head < SHARING)[:, None] & mask_n[None, :], N)
    return tl.sum(re + im, axis=0)


@triton.jit(do_not_specialize=["tokens", "chunks"])
def rotate_backward_kernel(
    b_turned_ptr, c_turned_ptr, omega_ptr, token_dt_ptr, lengths_ptr, rate_ptr, prefix_ptr,
    db_turned_ptr, dc_turned_ptr, flow_ptr,
    db_ptr, dc_ptr, domega_ptr, drate_ptr,
    row_omega, tokens, chunks,
    G: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, PAIRS: tl.constexpr, PARTS: tl.constexpr,
    SHARING: tl.constexpr, HEADS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Gradients of b, c, omega from those of the turned B and C ([parts, B, T, G, 2 N], summed).

    flow [B, K, H, 2 N]: what a turn before the chunk's end changes behind it, as two halves to be
    added; drate [B, K, G, N].
    """
    g, chunk, row, n, rate, token, factor, v, cos, sin, mask, within = group_tokens(
        omega_ptr, token_dt_ptr, lengths_ptr, rate_ptr, prefix_ptr, row_omega, tokens, chunks,
        G, N, Q, PAIRS, EXACT,
    )  # fmt: skip
    rows = (tl.num_programs(0) // (G * chunks)).to(tl.int64)
    at = token[:, None] * (G * 2 * N) + g * (2 * N) + n[None, :]
    part = rows * tokens * (G * 2 * N)
    re, im = added_parts(dc_turned_ptr + at, part, mask, PARTS, N)
    dphase, _ = turned_back(c_turned_ptr + at, dc_ptr + at, re, im, cos, sin, mask, within, N)
    re, im = added_parts(db_turned_ptr + at, part, mask, PARTS, N)
    cos, sin, shrink = slowed(cos, sin, v)
    dphase_b, dsize = turned_back(b_turned_ptr + at, db_ptr + at, re, im, cos, sin, mask, within, N)
    own = (row.to(tl.int64) * chunks + chunk) * G + g
    dturn = flow_behind(flow_ptr, own, n < N, n, N, SHARING, HEADS)

    dangle = tl.cumsum(dphase + dphase_b, axis=0, reverse=True) + dturn[None, :]
    dangle -= 0.5 * (dphase_b + v * dsize)
    dspeed = tl.where(mask, dangle * shrink * factor[:, None], 0.0)
    tl.store(domega_ptr + token[:, None] * (G * N) + g * N + n[None, :],
             (dspeed * rate[None, :]).to(domega_ptr.dtype.element_ty), mask=within)  # fmt: skip
    place = omega_ptr + token[:, None] * row_omega + g * N + n[None, :]
    omega = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    drate = tl.sum(dspeed * (1.0 + omega), axis=0)
    tl.store(drate_ptr + own * N + n, drate, mask=n < N)


@triton.jit(do_not_specialize=["tokens", "chunks"])
def gates_backward_kernel(
    alpha_ptr, dt_ptr, token_dt_ptr, lengths_ptr, alpha_bias_ptr, dt_bias_ptr,
    ddecay_ptr, dweight_ptr,
    dalpha_ptr, ddt_ptr, dbias_ptr,
    row_alpha, row_dt, tokens, chunks,
    H: tl.constexpr, Q: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Gradients of alpha and dt from those of each token's decay and weight [B, H, K Q], in
    natural units; dbias [2, B, K, H]."""
    row, chunk, i, h, token, live, factor, alpha, dt = head_tokens(
        alpha_ptr, dt_ptr, token_dt_ptr, lengths_ptr, alpha_bias_ptr, dt_bias_ptr,
        row_alpha, row_dt, tokens, chunks, H, Q, HEADS,
    )  # fmt: skip
    mask = live[:, None] & (h < H)[None, :]
    plain = softplus(dt)
    rate = softplus(alpha)
    step = plain * factor[:, None]
    q = tl.minimum(0.5 * step * rate, LIMIT)
    inverse = 1.0 / tl.sqrt(1.0 + q * q)
    u = q * inverse

    place = (row * H + h)[None, :].to(tl.int64) * (chunks * Q) + i[:, None]
    dlog = tl.load(ddecay_ptr + place, mask=mask, other=0.0)
    dweight = tl.load(dweight_ptr + place, mask=mask, other=0.0)
    dq = -2.0 * inverse * dlog
    dq += dweight * (inverse * inverse * inverse / (1.0 + u))
    dalpha = tl.where(mask, dq * 0.5 * step * sigmoid(alpha), 0.0)
    slope = sigmoid(dt)
    ddt = dq * 0.5 * rate * slope * factor[:, None] - dweight * (slope / tl.maximum(plain, 1e-30))
    ddt = tl.where(mask, ddt, 0.0)
    out = token[:, None] * H + h[None, :]
    kept = (i < tokens)[:, None] & (h < H)[None, :]
    tl.store(dalpha_ptr + out, dalpha.to(dalpha_ptr.dtype.element_ty), mask=kept)
    tl.store(ddt_ptr + out, ddt.to(ddt_ptr.dtype.element_ty), mask=kept)
    rows = tl.num_programs(0) // chunks
    at = dbias_ptr + (row * chunks + chunk) * H + h
    tl.store(at, tl.sum(dalpha, axis=0), mask=h < H)
    tl.store(at + rows * chunks * H, tl.sum(ddt, axis=0), mask=h < H)
