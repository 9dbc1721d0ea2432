"""Triton kernels of the gates' gradients; the forward ones are in ``kernel_gates``."""

import triton
import triton.language as tl

from kssm.ops.matrix_scan.kernel_gates import (
    LIMIT,
    chunk_phases,
    cos_sin,
    pair_speed,
    softplus,
    turns,
)


@triton.jit
def sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit(do_not_specialize=["tokens", "chunks"])
def rotate_backward_kernel(
    b_ptr, c_ptr, omega_ptr, token_dt_ptr, lengths_ptr, rate_ptr, prefix_ptr,
    db_turned_ptr, dc_turned_ptr, flow_ptr,
    db_ptr, dc_ptr, domega_ptr, drate_ptr,
    row_b, row_c, row_omega, tokens, chunks,
    G: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, PAIRS: tl.constexpr, PARTS: tl.constexpr,
    SHARING: tl.constexpr, HEADS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Gradients of b, c, omega from those of the turned B and C ([parts, B, T, G, 2 N], summed).

    flow [B, K, H, 2 N]: what a turn before the chunk's end changes behind it, as two halves to be
    added; drate [B, K, G, N].
    """
    g = tl.program_id(0) % G
    chunk = (tl.program_id(0) // G) % chunks
    row = tl.program_id(0) // (G * chunks)
    rows = (tl.num_programs(0) // (G * chunks)).to(tl.int64)
    i = chunk * Q + tl.arange(0, Q)
    n = tl.arange(0, PAIRS)
    end = tokens
    if lengths_ptr is not None:
        end = tl.minimum(tl.load(lengths_ptr + row).to(tl.int32), tokens)
    live = i < end
    token = row.to(tl.int64) * tokens + i
    factor = tl.where(live, 1.0, 0.0)
    if token_dt_ptr is not None:
        factor = tl.load(token_dt_ptr + token, mask=live, other=0.0).to(tl.float32)
    rate = tl.load(rate_ptr + g * N + n, mask=n < N, other=0.0)
    v = pair_speed(omega_ptr, rate, token, row_omega, g, factor, live, n, N, EXACT)
    turned = turns(v, EXACT)
    v = v.to(tl.float32)
    cos, sin = cos_sin(chunk_phases(prefix_ptr, row, g, chunk, chunks, turned, n, G, N))
    mask = live[:, None] & (n < N)[None, :]
    at = token[:, None] * (G * 2 * N) + g * (2 * N) + n[None, :]
    within = (i < tokens)[:, None] & (n < N)[None, :]
    db_re = tl.zeros([Q, PAIRS], dtype=tl.float32)
    db_im, dc_re, dc_im = db_re, db_re, db_re
    for part in tl.static_range(PARTS):
        add = part * rows * tokens * (G * 2 * N)
        db_re += tl.load(db_turned_ptr + add + at, mask=mask, other=0.0).to(tl.float32)
        db_im += tl.load(db_turned_ptr + add + at + N, mask=mask, other=0.0).to(tl.float32)
        dc_re += tl.load(dc_turned_ptr + add + at, mask=mask, other=0.0).to(tl.float32)
        dc_im += tl.load(dc_turned_ptr + add + at + N, mask=mask, other=0.0).to(tl.float32)
    head = tl.arange(0, HEADS)
    mask_flow = (head < SHARING)[:, None] & (n < N)[None, :]
    place = ((row.to(tl.int64) * chunks + chunk) * G + g) * SHARING + head
    place = flow_ptr + place[:, None] * (2 * N) + n[None, :]
    flow = tl.load(place, mask=mask_flow, other=0.0)
    dturn = tl.sum(flow + tl.load(place + N, mask=mask_flow, other=0.0), axis=0)

    kind = dc_ptr.dtype.element_ty
    new_re, new_im = dc_re * cos + dc_im * sin, dc_im * cos - dc_re * sin
    tl.store(dc_ptr + at, new_re.to(kind), mask=within)
    tl.store(dc_ptr + at + N, new_im.to(kind), mask=within)
    source = c_ptr + token[:, None] * row_c + g * (2 * N) + n[None, :]
    re = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    im = tl.load(source + N, mask=mask, other=0.0).to(tl.float32)
    dphase = new_im * re - new_re * im

    shrink = 1.0 / (1.0 + v * v)
    cos_b, sin_b = (cos + v * sin) * shrink, (sin - v * cos) * shrink
    new_re, new_im = db_re * cos_b + db_im * sin_b, db_im * cos_b - db_re * sin_b
    tl.store(db_ptr + at, new_re.to(kind), mask=within)
    tl.store(db_ptr + at + N, new_im.to(kind), mask=within)
    source = b_ptr + token[:, None] * row_b + g * (2 * N) + n[None, :]
    re = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    im = tl.load(source + N, mask=mask, other=0.0).to(tl.float32)
    dphase_b = new_im * re - new_re * im
    dsize = new_re * re + new_im * im
    dphase += dphase_b

    dangle = tl.cumsum(dphase, axis=0, reverse=True) + dturn[None, :]
    dangle -= 0.5 * (dphase_b + v * dsize)
    dspeed = tl.where(mask, dangle * shrink * factor[:, None], 0.0)
    tl.store(domega_ptr + token[:, None] * (G * N) + g * N + n[None, :],
             (dspeed * rate[None, :]).to(domega_ptr.dtype.element_ty), mask=within)  # fmt: skip
    place = omega_ptr + token[:, None] * row_omega + g * N + n[None, :]
    omega = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    drate = tl.sum(dspeed * (1.0 + omega), axis=0)
    place = ((row.to(tl.int64) * chunks + chunk) * G + g) * N + n
    tl.store(drate_ptr + place, drate, mask=n < N)


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
    row = tl.program_id(0) // chunks
    chunk = tl.program_id(0) % chunks
    i = chunk * Q + tl.arange(0, Q)
    h = tl.arange(0, HEADS)
    end = tokens
    if lengths_ptr is not None:
        end = tl.minimum(tl.load(lengths_ptr + row).to(tl.int32), tokens)
    live = i < end
    token = row.to(tl.int64) * tokens + i
    mask = live[:, None] & (h < H)[None, :]
    alpha = tl.load(alpha_ptr + token[:, None] * row_alpha + h[None, :], mask=mask, other=0.0)
    dt = tl.load(dt_ptr + token[:, None] * row_dt + h[None, :], mask=mask, other=0.0)
    alpha = alpha.to(tl.float32) + tl.load(alpha_bias_ptr + h, mask=h < H, other=0.0)[None, :]
    dt = dt.to(tl.float32) + tl.load(dt_bias_ptr + h, mask=h < H, other=0.0)[None, :]
    factor = tl.where(live, 1.0, 0.0)
    if token_dt_ptr is not None:
        factor = tl.load(token_dt_ptr + token, mask=live, other=0.0).to(tl.float32)
    plain = softplus(dt)
    rate = softplus(alpha)
    step = plain * factor[:, None]
    q = tl.minimum(0.5 * step * rate, LIMIT)
    inverse = 1.0 / tl.sqrt(1.0 + q * q)
    u = q * inverse

    place = (row * H + h)[None, :].to(tl.int64) * (chunks * Q) + i[:, None]
    within = (h < H)[None, :] & live[:, None]
    dlog = tl.load(ddecay_ptr + place, mask=within, other=0.0)
    dweight = tl.load(dweight_ptr + place, mask=within, other=0.0)
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
