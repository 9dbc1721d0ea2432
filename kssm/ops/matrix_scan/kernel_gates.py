"""Triton kernels of the gates: decays, gains and phases of every token.

Phases are whole numbers of 2^-32 turns: sums of any length wrap around exactly, so that nothing
is lost however long the row is. What a kernel keeps for others it keeps chunk by chunk.
"""

import triton
import triton.language as tl

TURN = tl.constexpr(4294967296.0)
TO_RADIANS = tl.constexpr(6.283185307179586 / 4294967296.0)
EIGHTH = tl.constexpr(536870912)
MOST = tl.constexpr(2147483520.0)
LOG2_E = tl.constexpr(1.4426950408889634)
CEILING = tl.constexpr(1e10)
LIMIT = tl.constexpr(1e18)


@triton.jit
def log1p_unit(x):
    """log(1 + x) for 0 <= x <= 1, to fp32 accuracy (a Chebyshev fit of log(1 + x) / x)."""
    p = ((5.253458e-3 * x - 2.9588507e-2) * x + 7.836167e-2) * x - 1.367477e-1
    p = ((p * x + 1.911143e-1) * x - 2.484437e-1) * x + 3.331927e-1
    return (p * x - 4.9999502e-1) * x * x + x


@triton.jit
def log1p(x):
    """log(1 + x) for x >= 0 without losing small x."""
    return tl.where(x > 1.0, tl.log(1.0 + x), log1p_unit(tl.minimum(x, 1.0)))


@triton.jit
def softplus(x):
    return tl.minimum(tl.maximum(x, 0.0) + log1p_unit(tl.exp(-tl.abs(x))), CEILING)


@triton.jit
def half_angle(v):
    """atan(v) in fp32 (range reduction to [0, tan(pi/8)] and a polynomial, as in Cephes)."""
    z = tl.abs(v)
    big = z > 2.414213562373095
    middle = z > 0.4142135623730950
    top = tl.where(big, -1.0, tl.where(middle, z - 1.0, z))
    z = top / tl.where(big, z, tl.where(middle, z + 1.0, 1.0))
    s = z * z
    p = ((8.05374449538e-2 * s - 1.38776856032e-1) * s + 1.99777106478e-1) * s - 3.33329491539e-1
    base = tl.where(big, 1.5707963267948966, tl.where(middle, 0.7853981633974483, 0.0))
    angle = base + (p * s * z + z)
    return tl.where(v < 0, -angle, angle)


@triton.jit
def turns(v, EXACT: tl.constexpr):
    """The angle 2 atan(v) in units of 2^-32 turns; EXACT: v in fp64, one step of Newton's.

    Exact ones are rounded to the nearest: cut off, 10,000 tokens would lose 1e-5 radians.
    """
    half = half_angle(v.to(tl.float32))
    if EXACT:
        half = half.to(tl.float64)
        cos, sin = tl.cos(half), tl.sin(half)
        half += (v * cos - sin) / (cos + v * sin)
        return tl.floor(half * (TURN / 3.141592653589793) + 0.5).to(tl.int64).to(tl.int32)
    value = half * (TURN / 3.141592653589793)
    return tl.minimum(tl.maximum(value, -MOST), MOST).to(tl.int32)


@triton.jit
def cos_sin(phase):
    """Cosine and sine of an angle in 2^-32 turns, to fp32 accuracy.

    The nearest quarter turn is whole-number arithmetic; what is left goes through polynomials.
    """
    quarter = (phase + EIGHTH) >> 30
    x = (phase - (quarter << 30)).to(tl.float32) * TO_RADIANS
    z = x * x
    s = ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1) * z * x + x
    c = ((2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z
    c += 1.0 - 0.5 * z
    swap = (quarter & 1) == 1
    sin, cos = tl.where(swap, c, s), tl.where(swap, s, c)
    sin = tl.where((quarter & 2) == 2, -sin, sin)
    return tl.where(((quarter + 1) & 2) == 2, -cos, cos), sin


@triton.jit
def live_tokens(token_dt_ptr, lengths_ptr, row, i, tokens):
    """Places of the row's tokens i, which of them are before its end, and their steps' factors."""
    end = tokens
    if lengths_ptr is not None:
        end = tl.minimum(tl.load(lengths_ptr + row).to(tl.int32), tokens)
    live = i < end
    token = row.to(tl.int64) * tokens + i
    factor = tl.where(live, 1.0, 0.0)
    if token_dt_ptr is not None:
        factor = tl.load(token_dt_ptr + token, mask=live, other=0.0).to(tl.float32)
    return token, live, factor


@triton.jit
def speed(rate, omega, factor):
    """v, short of where its square overflows."""
    return tl.minimum(tl.maximum(0.5 * rate * (1.0 + omega) * factor, -LIMIT), LIMIT)


@triton.jit
def pair_speed(
    omega_ptr, rate, token, row_omega, group, factor, live, n, N: tl.constexpr, EXACT: tl.constexpr
):  # fmt: skip
    """v [Q, N] of a chunk's tokens (EXACT: in fp64), 0 at those not live."""
    place = omega_ptr + token[:, None].to(tl.int64) * row_omega + group * N + n[None, :]
    omega = tl.load(place, mask=live[:, None] & (n < N)[None, :], other=0.0).to(tl.float32)
    if EXACT:
        omega, rate, factor = omega.to(tl.float64), rate.to(tl.float64), factor.to(tl.float64)
    v = speed(rate[None, :], omega, factor[:, None])
    return tl.where(live[:, None], v, tl.zeros_like(v))


@triton.jit
def head_tokens(
    alpha_ptr, dt_ptr, token_dt_ptr, lengths_ptr, alpha_bias_ptr, dt_bias_ptr,
    row_alpha, row_dt, tokens, chunks,
    H: tl.constexpr, Q: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """A program's row and chunk, their tokens i, all heads h; ``live_tokens``; and alpha and dt
    with their biases [Q, HEADS]."""
    row = tl.program_id(0) // chunks
    chunk = tl.program_id(0) % chunks
    i = chunk * Q + tl.arange(0, Q)
    h = tl.arange(0, HEADS)
    token, live, factor = live_tokens(token_dt_ptr, lengths_ptr, row, i, tokens)
    mask = live[:, None] & (h < H)[None, :]
    alpha = tl.load(alpha_ptr + token[:, None] * row_alpha + h[None, :], mask=mask, other=0.0)
    dt = tl.load(dt_ptr + token[:, None] * row_dt + h[None, :], mask=mask, other=0.0)
    alpha_bias = tl.load(alpha_bias_ptr + h, mask=h < H, other=0.0)
    dt_bias = tl.load(dt_bias_ptr + h, mask=h < H, other=0.0)
    alpha = alpha.to(tl.float32) + alpha_bias[None, :]
    return row, chunk, i, h, token, live, factor, alpha, dt.to(tl.float32) + dt_bias[None, :]


@triton.jit(do_not_specialize=["tokens", "chunks"])
def gates_kernel(
    alpha_ptr, dt_ptr, omega_ptr, token_dt_ptr, lengths_ptr, alpha_bias_ptr, dt_bias_ptr, rate_ptr,
    decay_ptr, weight_ptr, totals_ptr,
    row_alpha, row_dt, row_omega, tokens, chunks,
    H: tl.constexpr, G: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, HEADS: tl.constexpr,
    PAIRS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """One chunk. decay [B, H, K Q]: the log2 decay since the chunk's start, the token included;
    weight: that minus the log2 gain (both in fp64 where EXACT); totals [B, G, N, K]: the turns of
    the whole chunk."""
    row, chunk, i, h, token, live, factor, alpha, dt = head_tokens(
        alpha_ptr, dt_ptr, token_dt_ptr, lengths_ptr, alpha_bias_ptr, dt_bias_ptr,
        row_alpha, row_dt, tokens, chunks, H, Q, HEADS,
    )  # fmt: skip
    mask = live[:, None] & (h < H)[None, :]
    step = softplus(dt) * factor[:, None]
    q = tl.minimum(0.5 * step * softplus(alpha), LIMIT)
    root = tl.sqrt(1.0 + q * q)
    decay = -2.0 * LOG2_E * log1p(q + q * (q / (1.0 + root)))
    gain = step / (1.0 + q / root)
    if EXACT:
        decay, gain = decay.to(tl.float64), gain.to(tl.float64)
    decay = tl.cumsum(tl.where(mask, decay, tl.zeros_like(decay)), axis=0)
    counts = mask & (gain > 0)
    weight = decay - tl.log2(tl.where(counts, gain, tl.zeros_like(gain) + 1.0))
    weight = tl.where(counts, weight, tl.zeros_like(weight) + 1e30)
    place = (row * H + h)[None, :].to(tl.int64) * (chunks * Q) + i[:, None]
    tl.store(decay_ptr + place, decay, mask=(h < H)[None, :])
    tl.store(weight_ptr + place, weight, mask=(h < H)[None, :])
    n = tl.arange(0, PAIRS)
    for g in tl.static_range(G):
        rate = tl.load(rate_ptr + g * N + n, mask=n < N, other=0.0)
        v = pair_speed(omega_ptr, rate, token, row_omega, g, factor, live, n, N, EXACT)
        total = tl.sum(turns(v, EXACT), axis=0)
        place = ((row * G + g) * N + n).to(tl.int64) * chunks + chunk
        tl.store(totals_ptr + place, total, mask=n < N)


@triton.jit
def group_tokens(
    omega_ptr, token_dt_ptr, lengths_ptr, rate_ptr, prefix_ptr, row_omega, tokens, chunks,
    G: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, PAIRS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """A program's group g, chunk and row, all pairs n, their rates, its tokens and their steps'
    factors; v [Q, N], cosine and sine of the phases since the row's start; masks of what is read
    and of what is written."""
    g = tl.program_id(0) % G
    chunk = (tl.program_id(0) // G) % chunks
    row = tl.program_id(0) // (G * chunks)
    i = chunk * Q + tl.arange(0, Q)
    n = tl.arange(0, PAIRS)
    token, live, factor = live_tokens(token_dt_ptr, lengths_ptr, row, i, tokens)
    rate = tl.load(rate_ptr + g * N + n, mask=n < N, other=0.0)
    v = pair_speed(omega_ptr, rate, token, row_omega, g, factor, live, n, N, EXACT)
    place = prefix_ptr + ((row * G + g) * N + n).to(tl.int64) * chunks + chunk - 1
    start = tl.load(place, mask=n < tl.where(chunk > 0, N, 0), other=0)
    cos, sin = cos_sin(start[None, :] + tl.cumsum(turns(v, EXACT), axis=0))
    mask = live[:, None] & (n < N)[None, :]
    within = (i < tokens)[:, None] & (n < N)[None, :]
    return g, chunk, row, n, rate, token, factor, v.to(tl.float32), cos, sin, mask, within


@triton.jit
def slowed(cos, sin, v):
    """exp(i phase) / (1 + i v), and 1 / (1 + v²)."""
    shrink = 1.0 / (1.0 + v * v)
    return (cos + v * sin) * shrink, (sin - v * cos) * shrink, shrink


@triton.jit
def load_pairs(place, mask, N: tl.constexpr):
    """Real and imaginary parts in fp32, N numbers apart."""
    re = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    return re, tl.load(place + N, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_pairs(place, re, im, mask, N: tl.constexpr):
    kind = place.dtype.element_ty
    tl.store(place, re.to(kind), mask=mask)
    tl.store(place + N, im.to(kind), mask=mask)


@triton.jit
def store_turned(ptr, rest_ptr, at, re, im, mask, N: tl.constexpr):
    """Stores pairs, and what they lose when rounded where somebody asks for it."""
    store_pairs(ptr + at, re, im, mask, N)
    if rest_ptr is not None:
        kind = ptr.dtype.element_ty
        re, im = re - re.to(kind).to(tl.float32), im - im.to(kind).to(tl.float32)
        store_pairs(rest_ptr + at, re, im, mask, N)


@triton.jit(do_not_specialize=["tokens", "chunks"])
def rotate_kernel(
    b_ptr, c_ptr, omega_ptr, token_dt_ptr, lengths_ptr, rate_ptr, prefix_ptr,
    b_out_ptr, c_out_ptr, b_rest_ptr, c_rest_ptr,
    row_b, row_c, row_omega, tokens, chunks,
    G: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, PAIRS: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """One chunk of one group: B and C in the turning frame; zeros behind the row's end.

    b_rest, c_rest: see ``store_turned``.
    """
    g, _, _, n, _, token, _, v, cos, sin, mask, within = group_tokens(
        omega_ptr, token_dt_ptr, lengths_ptr, rate_ptr, prefix_ptr, row_omega, tokens, chunks,
        G, N, Q, PAIRS, EXACT,
    )  # fmt: skip
    out = token[:, None] * (G * 2 * N) + g * (2 * N) + n[None, :]
    column = g * (2 * N) + n[None, :]
    re, im = load_pairs(c_ptr + token[:, None] * row_c + column, mask, N)
    re, im = re * cos - im * sin, re * sin + im * cos
    store_turned(c_out_ptr, c_rest_ptr, out, re, im, within, N)
    re, im = load_pairs(b_ptr + token[:, None] * row_b + column, mask, N)
    cos, sin, _ = slowed(cos, sin, v)
    re, im = re * cos - im * sin, re * sin + im * cos
    store_turned(b_out_ptr, b_rest_ptr, out, re, im, within, N)


@triton.jit(do_not_specialize=["chunks"])
def turn_states_kernel(
    state_ptr, prefix_ptr, out_ptr, chunks,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, N: tl.constexpr, PAIRS: tl.constexpr,
    BACK: tl.constexpr,
):  # fmt: skip
    """One head's state behind a row: [H, 2 N, P] in the turning frame -> [H, P, N, 2] outside it;
    BACK: the other way, which is also how a gradient goes."""
    head = tl.program_id(0) % H
    row = tl.program_id(0) // H
    n = tl.arange(0, PAIRS)
    p = tl.arange(0, P)
    own = tl.program_id(0).to(tl.int64) * (2 * N * P)
    inner = own + n[:, None] * P + p[None, :]
    outer = own + 2 * (p[:, None] * N + n[None, :])[:, :, None] + tl.arange(0, 2)[None, None, :]
    place = prefix_ptr + ((row * G + head // (H // G)) * N + n).to(tl.int64) * chunks + chunks - 1
    cos, sin = cos_sin(tl.load(place, mask=n < N, other=0))
    mask, mask_out = (n < N)[:, None], (n < N)[None, :, None]
    if BACK:
        re, im = tl.split(tl.load(state_ptr + outer, mask=mask_out, other=0.0))
        re, im = tl.trans(re), tl.trans(im)
        re, im = re * cos[:, None] - im * sin[:, None], re * sin[:, None] + im * cos[:, None]
        tl.store(out_ptr + inner, re, mask=mask)
        tl.store(out_ptr + inner + N * P, im, mask=mask)
    else:
        re, im = load_pairs(state_ptr + inner, mask, N * P)
        re, im = re * cos[:, None] + im * sin[:, None], im * cos[:, None] - re * sin[:, None]
        tl.store(out_ptr + outer, tl.join(tl.trans(re), tl.trans(im)), mask=mask_out)
