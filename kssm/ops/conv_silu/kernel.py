"""Triton kernels of the filtered tokens and their gradients.

A program owns some channels and walks along a span of tokens, with the taps and the last tokens in
registers: forward in time for the values, backward in time for the gradients, where what reaches
back from the tokens behind is then already there. Fewer than four taps are four with zeros.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kssm.ops.kernel_maths import sigmoid


@triton.jit
def place(spans, C: tl.constexpr, SPAN: tl.constexpr, BLOCK_C: tl.constexpr):
    """This program's channels, row of the batch, span and first token."""
    pieces: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    program = tl.program_id(0)
    c = (program % pieces) * BLOCK_C + tl.arange(0, BLOCK_C)
    rest = program // pieces
    batch = (rest // spans).to(tl.int64)
    return c, batch, rest, (rest % spans) * SPAN


@triton.jit
def token(
    x_ptr, row_stride, window_ptr, t, tokens, c, C: tl.constexpr, ROW: tl.constexpr,
    KEPT: tl.constexpr,
):  # fmt: skip
    """Token ``t`` in fp32: from the window before the first one, zero beyond either end."""
    inside = c < tl.where((t >= 0) & (t < tokens), C, 0)
    x = tl.load(x_ptr + t.to(tl.int64) * row_stride + c, mask=inside, other=0.0).to(tl.float32)
    if window_ptr is not None:
        before = c < tl.where((t < 0) & (t + KEPT >= 0), C, 0)
        past = window_ptr + (t + KEPT) * ROW + c
        x += tl.load(past, mask=before, other=0.0).to(tl.float32)
    return x


@triton.jit
def tap(
    weight_ptr, c, C: tl.constexpr, ROW: tl.constexpr, LAG: tl.constexpr, TAPS: tl.constexpr
):  # fmt: skip
    """The weight of the token ``LAG`` before the present one."""
    weight_ptr += (TAPS - 1 - LAG) * ROW
    return tl.load(weight_ptr + c, mask=c < (C if TAPS > LAG else 0), other=0.0).to(tl.float32)


@triton.jit
def silu(p):
    return p * sigmoid(p)


@triton.jit
def silu_slope(p):
    s = sigmoid(p)
    return s * (1.0 + p * (1.0 - s))


@triton.jit
def put(y_ptr, t, tokens, row_stride, c, C: tl.constexpr, value):
    at = y_ptr + t.to(tl.int64) * row_stride + c
    tl.store(at, value.to(y_ptr.dtype.element_ty), mask=c < tl.where(t < tokens, C, 0))


@triton.jit
def taps(weight_ptr, c, C: tl.constexpr, ROW: tl.constexpr, TAPS: tl.constexpr):
    """The four weights, that of the present token first."""
    w0 = tap(weight_ptr, c, C, ROW, 0, TAPS)
    w1 = tap(weight_ptr, c, C, ROW, 1, TAPS)
    w2 = tap(weight_ptr, c, C, ROW, 2, TAPS)
    w3 = tap(weight_ptr, c, C, ROW, 3, TAPS)
    return w0, w1, w2, w3


@triton.jit
def dot(w, a, b, d, e):
    return w[0] * a + w[1] * b + w[2] * d + w[3] * e


@triton.jit
def forward_kernel(
    x_ptr, weight_ptr, bias_ptr, window_ptr, y_ptr, x_row, tokens, spans,
    C: tl.constexpr, TAPS: tl.constexpr, SPAN: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """y [B, T, C] of x, whose rows are ``x_row`` apart."""
    c, batch, _, first = place(spans, C, SPAN, BLOCK_C)
    kept: tl.constexpr = TAPS - 1
    x_ptr += batch * tokens * x_row
    y_ptr += batch * tokens * C
    if window_ptr is not None:
        window_ptr += batch * kept * C
    w = taps(weight_ptr, c, C, C, TAPS)
    bias = tl.load(bias_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    x1 = token(x_ptr, x_row, window_ptr, first - 1, tokens, c, C, C, kept)
    x2 = token(x_ptr, x_row, window_ptr, first - 2, tokens, c, C, C, kept)
    x3 = token(x_ptr, x_row, window_ptr, first - 3, tokens, c, C, C, kept)
    for i in range(0, SPAN, 4):
        t = first + i
        a = token(x_ptr, x_row, None, t, tokens, c, C, C, kept)
        b = token(x_ptr, x_row, None, t + 1, tokens, c, C, C, kept)
        d = token(x_ptr, x_row, None, t + 2, tokens, c, C, C, kept)
        e = token(x_ptr, x_row, None, t + 3, tokens, c, C, C, kept)
        put(y_ptr, t, tokens, C, c, C, silu(bias + dot(w, a, x1, x2, x3)))
        put(y_ptr, t + 1, tokens, C, c, C, silu(bias + dot(w, b, a, x1, x2)))
        put(y_ptr, t + 2, tokens, C, c, C, silu(bias + dot(w, d, b, a, x1)))
        put(y_ptr, t + 3, tokens, C, c, C, silu(bias + dot(w, e, d, b, a)))
        x1, x2, x3 = e, d, b


@triton.jit
def incoming(dy_ptr, again_ptr, dy_row, again_row, t, tokens, c, C: tl.constexpr):
    """The gradient of y at token ``t``, the sum of one or two."""
    dy = token(dy_ptr, dy_row, None, t, tokens, c, C, C, 0)
    if again_ptr is not None:
        dy += token(again_ptr, again_row, None, t, tokens, c, C, C, 0)
    return dy


@triton.jit
def behind(
    x_ptr, window_ptr, dy_ptr, again_ptr, x_row, dy_row, again_row, end, tokens, bias, w, c,
    C: tl.constexpr, ROW: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """g of the three tokens from ``end`` on, and the three tokens before ``end``, last first."""
    zero = tl.zeros_like(bias)
    g1, g2, g3 = zero, zero, zero
    x0 = token(x_ptr, x_row, window_ptr, end + 2, tokens, c, C, ROW, KEPT)
    x1 = token(x_ptr, x_row, window_ptr, end + 1, tokens, c, C, ROW, KEPT)
    x2 = token(x_ptr, x_row, window_ptr, end, tokens, c, C, ROW, KEPT)
    for i in tl.static_range(3):
        x3 = token(x_ptr, x_row, window_ptr, end - 1 - i, tokens, c, C, ROW, KEPT)
        dy = incoming(dy_ptr, again_ptr, dy_row, again_row, end + 2 - i, tokens, c, C)
        g3 = g2
        g2 = g1
        g1 = dy * silu_slope(bias + dot(w, x0, x1, x2, x3))
        x0 = x1
        x1 = x2
        x2 = x3
    return g1, g2, g3, x0, x1, x2


@triton.jit
def backward_kernel(
    x_ptr, weight_ptr, bias_ptr, window_ptr, dy_ptr, again_ptr, dx_ptr, dwindow_ptr, sums_ptr,
    x_row, dy_row, again_row, dx_row, tokens, spans,
    C: tl.constexpr, ROW: tl.constexpr, TAPS: tl.constexpr, SPAN: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradients of C of the ROW channels; ``sums`` [programs, 5, ROW]: four taps, newest token
    first, and the bias."""
    c, batch, part, first = place(spans, C, SPAN, BLOCK_C)
    kept: tl.constexpr = TAPS - 1
    x_ptr += batch * tokens * x_row
    dy_ptr += batch * tokens * dy_row
    dx_ptr += batch * tokens * dx_row
    if again_ptr is not None:
        again_ptr += batch * tokens * again_row
    if window_ptr is not None:
        window_ptr += batch * kept * ROW
    w = taps(weight_ptr, c, C, ROW, TAPS)
    bias = tl.load(bias_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    zero = tl.zeros_like(bias)
    d0, d1, d2, d3, dbias = zero, zero, zero, zero, zero
    g1, g2, g3, x0, x1, x2 = behind(
        x_ptr, window_ptr, dy_ptr, again_ptr, x_row, dy_row, again_row, first + SPAN, tokens,
        bias, w, c, C, ROW, kept,
    )  # fmt: skip
    for i in range(0, SPAN, 4):
        t = first + SPAN - 1 - i
        x3 = token(x_ptr, x_row, window_ptr, t - 3, tokens, c, C, ROW, kept)
        x4 = token(x_ptr, x_row, window_ptr, t - 4, tokens, c, C, ROW, kept)
        x5 = token(x_ptr, x_row, window_ptr, t - 5, tokens, c, C, ROW, kept)
        x6 = token(x_ptr, x_row, window_ptr, t - 6, tokens, c, C, ROW, kept)
        ga = incoming(dy_ptr, again_ptr, dy_row, again_row, t, tokens, c, C)
        gb = incoming(dy_ptr, again_ptr, dy_row, again_row, t - 1, tokens, c, C)
        gc = incoming(dy_ptr, again_ptr, dy_row, again_row, t - 2, tokens, c, C)
        gd = incoming(dy_ptr, again_ptr, dy_row, again_row, t - 3, tokens, c, C)
        ga *= silu_slope(bias + dot(w, x0, x1, x2, x3))
        gb *= silu_slope(bias + dot(w, x1, x2, x3, x4))
        gc *= silu_slope(bias + dot(w, x2, x3, x4, x5))
        gd *= silu_slope(bias + dot(w, x3, x4, x5, x6))
        put(dx_ptr, t, tokens, dx_row, c, C, dot(w, ga, g1, g2, g3))
        put(dx_ptr, t - 1, tokens, dx_row, c, C, dot(w, gb, ga, g1, g2))
        put(dx_ptr, t - 2, tokens, dx_row, c, C, dot(w, gc, gb, ga, g1))
        put(dx_ptr, t - 3, tokens, dx_row, c, C, dot(w, gd, gc, gb, ga))
        d0 += ga * x0 + gb * x1 + gc * x2 + gd * x3
        d1 += ga * x1 + gb * x2 + gc * x3 + gd * x4
        d2 += ga * x2 + gb * x3 + gc * x4 + gd * x5
        d3 += ga * x3 + gb * x4 + gc * x5 + gd * x6
        dbias += (ga + gb) + (gc + gd)
        g1, g2, g3 = gd, gc, gb
        x0, x1, x2 = x4, x5, x6
    leave(sums_ptr + part.to(tl.int64) * 5 * ROW + c, d0, d1, d2, d3, dbias, c < C, ROW)
    if dwindow_ptr is not None:
        early = c < tl.where(first == 0, C, 0)
        leave_window(dwindow_ptr + (batch + 1) * kept * ROW + c, w, g1, g2, g3, early, ROW, kept)


@triton.jit
def leave(at, d0, d1, d2, d3, dbias, mask, ROW: tl.constexpr):
    tl.store(at, d0, mask=mask)
    tl.store(at + ROW, d1, mask=mask)
    tl.store(at + 2 * ROW, d2, mask=mask)
    tl.store(at + 3 * ROW, d3, mask=mask)
    tl.store(at + 4 * ROW, dbias, mask=mask)


@triton.jit
def leave_window(end, w, g1, g2, g3, mask, ROW: tl.constexpr, KEPT: tl.constexpr):
    """What g of the first three tokens gives to the tokens of the window, which ends at ``end``."""
    tl.store(end - ROW, w[1] * g1 + w[2] * g2 + w[3] * g3, mask=mask)
    if KEPT > 1:
        tl.store(end - 2 * ROW, w[2] * g1 + w[3] * g2, mask=mask)
    if KEPT > 2:
        tl.store(end - 3 * ROW, w[3] * g1, mask=mask)
