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
def _round_to_bf16(x):
    """The bits of x with the upper half rounded to nearest even (the interpreter cuts it off)."""
    bits = x.to(tl.int32, bitcast=True)
    return bits + 32767 + ((bits >> 16) & 1)


@triton.jit
def pack_pair(re, im):
    """Two fp32 numbers rounded to bf16 in one 32-bit word, the real part in the low half."""
    if INTERPRETED:
        word = (_round_to_bf16(re) >> 16) & 65535 | (_round_to_bf16(im) & -65536)
    else:
        code: tl.constexpr = "cvt.rn.bf16x2.f32 $0, $2, $1;"
        word = tl.inline_asm_elementwise(
            code, "=r,f,f", [re, im], dtype=tl.int32, is_pure=True, pack=1
        )
    return word


@triton.jit
def unpack_pair(word):
    """The two numbers of ``pack_pair``: bf16 is the upper half of fp32."""
    re = (word << 16).to(tl.float32, bitcast=True)
    return re, (word & -65536).to(tl.float32, bitcast=True)


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
def sigmoid_of(x, softplus_x):
    """softplus'(x) = exp(x - softplus(x)): three instructions once softplus is there."""
    return exp2((x - softplus_x) * 1.4426950408889634)


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
def load_run(ptr, STRIDE: tl.constexpr, COUNT: tl.constexpr, mask):
    """COUNT loads at ptr, ptr + STRIDE, … as a tuple."""
    values = ()
    for u in tl.static_range(COUNT):
        values = values + (tl.load(ptr + u * STRIDE, mask=mask),)
    return values


@triton.jit
def load_group(ptrs, ROWS: tl.constexpr, LANES: tl.constexpr, COUNT: tl.constexpr, mask):
    """COUNT tokens of every tensor: values[tensor][token].

    The first LANES pointers hold one address a channel, the others one a token. Everything is
    asked for before anything is used, so that the latencies overlap: the compiler may not move a
    load above an earlier store by itself.

    The scans ask for the next group before they work on the present one. That work sits in an
    inner loop of ``once`` = 1 iterations, a number only known at run time: in one straight block
    the assembler moves the loads behind the arithmetic, where nothing is left to hide them.
    """
    values = ()
    for i in tl.static_range(len(ROWS)):
        if i < LANES:
            values = values + (load_run(ptrs[i], ROWS[i], COUNT, mask),)
        else:
            values = values + (load_run(ptrs[i], ROWS[i], COUNT, None),)
    return values


@triton.jit
def widen(values):
    """A group in fp32 (packed words apart), done just before its use: it waits for the loads."""
    wide = ()
    for i in tl.static_range(len(values)):
        run = ()
        for u in tl.static_range(len(values[i])):
            if values[i][u].dtype == tl.int32:
                run = run + (values[i][u],)
            else:
                run = run + (values[i][u].to(tl.float32),)
        wide = wide + (run,)
    return wide


@triton.jit
def move(ptrs, ROWS: tl.constexpr, COUNT):
    """Every pointer, COUNT tokens further on."""
    moved = ()
    for i in tl.static_range(len(ROWS)):
        moved = moved + (ptrs[i] + COUNT * ROWS[i],)
    return moved


@triton.jit
def locate(n_chunks, GROUPS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """(row, chunk, group, block, channels) of this program.

    The grid counts (row, chunk, block), the last fastest, in one dimension because the others
    stop at 65,535. Blocks do not straddle groups: the last of a group may be part empty.
    """
    BLOCKS: tl.constexpr = (WIDTH + BLOCK_D - 1) // BLOCK_D
    pid = tl.program_id(0)
    block = pid % (GROUPS * BLOCKS)
    outer = pid // (GROUPS * BLOCKS)
    group = block // BLOCKS
    lane = (block % BLOCKS) * BLOCK_D + tl.arange(0, BLOCK_D)
    row = (outer // n_chunks).to(tl.int64)
    return row, outer % n_chunks, group, block, group * WIDTH + lane


@triton.jit
def span(row, chunk, chunk_len, T, lengths_ptr):
    """(first token, end) of a chunk, cut at the row's length."""
    length = T
    if lengths_ptr is not None:
        length = tl.minimum(T, tl.load(lengths_ptr + row)).to(tl.int32)
    start = chunk * chunk_len
    return start, tl.maximum(tl.minimum(start + chunk_len, length), start)


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
def store_state(ptr, re, im, D: tl.constexpr, mask):
    """Keep one token's state: a word of two bf16 a channel, or an fp32 row each for re and im."""
    if ptr.dtype.element_ty == tl.int32:
        tl.store(ptr, pack_pair(re, im), mask=mask)
    else:
        tl.store(ptr, re, mask=mask)
        tl.store(ptr + D, im, mask=mask)


@triton.jit
def store_summary(ptr, excess_re, excess_im, local_re, local_im, mask):
    """What a chunk does to the state handed to it: state -> state + excess state + local.

    The excess is the product of λ less one: slow decays would be lost in a rounded product.
    """
    store_pair(ptr, excess_re, excess_im, mask)
    store_pair(ptr + 2, local_re, local_im, mask)


@triton.jit
def apply_summary(ptr, re, im, mask):
    """The state after a chunk, from its summary and the state before."""
    excess_re, excess_im = load_pair(ptr, mask)
    local_re, local_im = load_pair(ptr + 2, mask)
    new_re = re + (excess_re * re - excess_im * im + local_re)
    return new_re, im + (excess_re * im + excess_im * re + local_im)


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


@triton.jit
def clean_gates(
    values, u: tl.constexpr, factor, channel, FACTOR: tl.constexpr, EXACT: tl.constexpr
):
    """``token_gates`` of token u; values start with alpha, omega and dt."""
    alpha = clean(values[0][u], factor, FACTOR)
    omega = clean(values[1][u], factor, FACTOR)
    dt = clean(values[2][u], factor, FACTOR)
    return token_gates(alpha, omega, dt, factor, channel, EXACT)


@triton.jit
def load_channel(parameters, channels, mask):
    """(alpha_bias, w's shift, w's scale, dt_bias) of the program's channels."""
    alpha_bias = tl.load(parameters[0] + channels, mask=mask)
    scale = tl.load(parameters[2] + channels, mask=mask)
    shift = tl.load(parameters[1] + channels, mask=mask) * scale
    return alpha_bias, shift, scale, tl.load(parameters[3] + channels, mask=mask)
