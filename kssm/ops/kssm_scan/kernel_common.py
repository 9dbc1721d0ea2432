"""Triton building blocks shared by the scan's kernels and the step.

Every kernel gives one program BLOCK_D channels of one row, one lane (or two) a channel, and walks
time one token after the other: the fewest instructions an element, which is what limits it.
Names: tau = D / 2, p + i q = 1 + tau (a + i w), s = |p + i q|² - p, i2 = 2 / |p + i q|², hence
λ - 1 = -i2 (s + i q) and γ = i2 tau (p - i q).
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""The interpreter has no inline assembly; it computes the same with ordinary operations."""


@triton.jit
def exp2(x):
    """2^x without the denormal handling that doubles its cost (results below 2^-126 are 0)."""
    if INTERPRETED:
        result = tl.exp2(x)
    else:
        result = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return result


@triton.jit
def reciprocal(x):
    """1 / x to one unit in the last place, for x in [1, 2^126]; 0 above."""
    if INTERPRETED:
        result = 1.0 / x
    else:
        result = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return result


@triton.jit
def softplus(x, EXACT: tl.constexpr):
    """log(1 + exp(x)) = max(x, 0) + e P(e) with e = exp(-|x|), P a minimax fit of log1p(e) / e.

    Relative error 2e-7 when EXACT, else 6e-5 (a bf16 input is itself known to 2e-3). NaN stays.
    """
    e = exp2(tl.abs(x) * -1.4426950408889634)
    if EXACT:
        fit = 0.00523269463
        fit = fit * e - 0.0295052433
        fit = fit * e + 0.0782259652
        fit = fit * e - 0.136632475
        fit = fit * e + 0.19106008
        fit = fit * e - 0.248429827
        fit = fit * e + 0.333190969
        fit = fit * e - 0.499994931
        fit = fit * e + 0.99999997
    else:
        fit = 0.0413473051
        fit = fit * e - 0.157427236
        fit = fit * e + 0.306300969
        fit = fit * e - 0.496977822
        fit = fit * e + 0.99994328
    return fit * e + tl.maximum(x, 0.0)


@triton.jit
def coefficients(a, w, tau):
    """(p, q, s, i2) as named at the top of this file."""
    ta = tau * a
    q = tau * w
    p = 1.0 + ta
    s = ta * p + q * q
    return p, q, s, 2.0 * reciprocal(s + p)


@triton.jit
def advance(h_re, h_im, drive, b_re, b_im, p, q, s, i2):
    """h + (λ - 1) h + γ b x with drive = tau x; three dependent multiply-adds from h to h."""
    new_re = drive * (p * b_re + q * b_im) - s * h_re + q * h_im
    new_im = drive * (p * b_im - q * b_re) - s * h_im - q * h_re
    return h_re + i2 * new_re, h_im + i2 * new_im


@triton.jit
def locate(T, n_chunks, rows, GROUPS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """(row, its first token, its tokens, chunk, chunks, unit, group, block, first channel).

    The grid counts (unit, block), the last fastest, in one dimension because the others stop at
    65,535; a unit is one chunk of one row. ``rows`` is (lengths, offsets, table, first): without
    offsets all rows have T tokens, cut at lengths; with them the rows are packed, unit u belongs
    to row table[u] and row r's units start at first[r]. A unit beyond the last has no tokens.
    """
    BLOCKS: tl.constexpr = count_blocks(GROUPS, WIDTH, BLOCK_D)
    pid = tl.program_id(0)
    block = pid % BLOCKS
    unit = pid // BLOCKS
    group, channel = find_channels(block, WIDTH, BLOCK_D)
    row, start, length, chunk, chunks = find_row(unit, T, n_chunks, rows)
    return row, start, length, chunk, chunks, unit, group, block, channel


@triton.constexpr_function
def count_blocks(groups, width, block_d):
    """Blocks of channels: of a group, where the last may be part empty, or of several groups."""
    if block_d >= 2 * width:
        return groups * width // block_d
    return groups * ((width + block_d - 1) // block_d)


@triton.jit
def find_channels(block, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """(group, first channel) of a block; a block of several groups has their first."""
    if BLOCK_D >= 2 * WIDTH:
        channel = block * BLOCK_D
        group = channel // WIDTH
    else:
        BLOCKS: tl.constexpr = (WIDTH + BLOCK_D - 1) // BLOCK_D
        group = block // BLOCKS
        channel = group * WIDTH + (block % BLOCKS) * BLOCK_D
    return group, channel


@triton.jit
def find_row(unit, T, n_chunks, rows):
    """(row, its first token, its tokens, chunk, chunks) of a unit of work; see ``locate``."""
    if rows[1] is None:
        row = (unit // n_chunks).to(tl.int64)
        chunk = unit % n_chunks
        chunks = n_chunks
        start = row * T
        length = T
        if rows[0] is not None:
            length = tl.minimum(T, tl.load(rows[0] + row)).to(tl.int32)
    else:
        row = tl.load(rows[2] + unit).to(tl.int64)
        first = tl.load(rows[3] + row)
        chunk = (unit - first).to(tl.int32)
        chunks = (tl.load(rows[3] + row + 1) - first).to(tl.int32)
        start = tl.load(rows[1] + row).to(tl.int64)
        length = (tl.load(rows[1] + row + 1) - start).to(tl.int32)
    return row, start, length, chunk, chunks


@triton.jit
def span(chunk, chunk_len, length):
    """(first token, end) of a chunk, counted in its row and cut at the row's length."""
    start = chunk * chunk_len
    return start, tl.maximum(tl.minimum(start + chunk_len, length), start)


@triton.jit
def kept_row(row, first_token, T, offsets_ptr, KEEP: tl.constexpr):
    """Where a row's kept states begin: one before every KEEP tokens."""
    if offsets_ptr is None:
        place = row * ((T + KEEP - 1) // KEEP)
    else:
        place = first_token // KEEP + row
    return place


@triton.jit
def load_pair(ptr, mask):
    """(real, imaginary) from neighbouring numbers, in fp32."""
    return tl.load(ptr, mask=mask).to(tl.float32), tl.load(ptr + 1, mask=mask).to(tl.float32)


@triton.jit
def store_pair(ptr, re, im, mask):
    """Write (real, imaginary) side by side."""
    tl.store(ptr, re, mask=mask)
    tl.store(ptr + 1, im, mask=mask)


@triton.jit
def store_summary(ptr, excess_re, excess_im, local_re, local_im, mask):
    """What a chunk does to the state handed to it: state -> state + excess state + local.

    The excess is the product of λ less one: slow decays would be lost in a rounded product.
    """
    store_pair(ptr, excess_re, excess_im, mask)
    store_pair(ptr + 2, local_re, local_im, mask)


@triton.jit
def apply_summaries(ptr, STEP: tl.constexpr, count, re, im, mask):
    """The state after ``count`` chunks whose summaries follow each other at a distance of STEP.

    Eight are asked for at once: one after the other would wait for the memory each time.
    """
    for first in range(0, count, 8):
        pieces = ()
        remaining = tl.zeros_like(re).to(tl.int32) + (count - first)
        if mask is not None:
            remaining = tl.where(mask, remaining, 0)
        for k in tl.static_range(8):
            place = ptr + (first + k) * STEP
            here = remaining > k
            for part in tl.static_range(4):
                pieces = pieces + (tl.load(place + part, mask=here, other=0.0),)
        for k in tl.static_range(8):
            new_re = re + (pieces[4 * k] * re - pieces[4 * k + 1] * im + pieces[4 * k + 2])
            im = im + (pieces[4 * k] * im + pieces[4 * k + 1] * re + pieces[4 * k + 3])
            re = new_re
    return re, im


@triton.jit
def token_gates(alpha, omega, dt, factor, channel, EXACT: tl.constexpr):
    """(alpha and dt with their biases, a, w, softplus of dt, tau, p, q, s, i2) of one token."""
    alpha_bias, shift, scale, dt_bias = channel
    raw_alpha = alpha + alpha_bias
    raw_dt = dt + dt_bias
    a = softplus(raw_alpha, EXACT)
    w = omega * scale + shift
    step = softplus(raw_dt, EXACT)
    tau = tl.minimum(step * (0.5 * factor), 5e9, propagate_nan=tl.PropagateNan.ALL)
    p, q, s, i2 = coefficients(a, w, tau)
    return raw_alpha, raw_dt, a, w, step, tau, p, q, s, i2


@triton.jit
def step_factor(values, u: tl.constexpr, FACTOR: tl.constexpr):
    """The token's step factor; FACTOR is its place in values, or -1 for none."""
    factor = 1.0
    if FACTOR >= 0:
        factor = values[FACTOR][u]
    return factor


@triton.jit
def clean(value, factor, FACTOR: tl.constexpr):
    """0 for what a token with step factor 0 brings: it may be anything, even not a number."""
    result = value
    if FACTOR >= 0:
        result = tl.where(factor == 0.0, 0.0, value)
    return result
