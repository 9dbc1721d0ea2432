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
def forward_kernel(
    x_ptr, weight_ptr, bias_ptr, window_ptr, y_ptr, x_row, tokens, spans,
    C: tl.constexpr, TAPS: tl.constexpr, SPAN: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """y [B, T, C] of x, whose rows are ``x_row`` apart."""
    c, batch, _, first = place(spans, C, SPAN, BLOCK_C)
    mask = c < C
    kept: tl.constexpr = TAPS - 1
    x_ptr += batch * tokens * x_row
    y_ptr += batch * tokens * C
    if window_ptr is not None:
        window_ptr += batch * kept * C
    w0 = tap(weight_ptr, c, C, C, 0, TAPS)
    w1 = tap(weight_ptr, c, C, C, 1, TAPS)
    w2 = tap(weight_ptr, c, C, C, 2, TAPS)
    w3 = tap(weight_ptr, c, C, C, 3, TAPS)
    bias = tl.load(bias_ptr + c, mask=mask, other=0.0).to(tl.float32)
    x1 = token(x_ptr, x_row, window_ptr, first - 1, tokens, c, C, C, kept)
    x2 = token(x_ptr, x_row, window_ptr, first - 2, tokens, c, C, C, kept)
    x3 = token(x_ptr, x_row, window_ptr, first - 3, tokens, c, C, C, kept)
    for i in range(0, SPAN, 4):
        t = first + i
        a = token(x_ptr, x_row, None, t, tokens, c, C, C, kept)
        b = token(x_ptr, x_row, None, t + 1, tokens, c, C, C, kept)
        d = token(x_ptr, x_row, None, t + 2, tokens, c, C, C, kept)
        e = token(x_ptr, x_row, None, t + 3, tokens, c, C, C, kept)
        put(y_ptr, t, tokens, C, c, C, silu(bias + w0 * a + w1 * x1 + w2 * x2 + w3 * x3))
        put(y_ptr, t + 1, tokens, C, c, C, silu(bias + w0 * b + w1 * a + w2 * x1 + w3 * x2))
        put(y_ptr, t + 2, tokens, C, c, C, silu(bias + w0 * d + w1 * b + w2 * a + w3 * x1))
        put(y_ptr, t + 3, tokens, C, c, C, silu(bias + w0 * e + w1 * d + w2 * b + w3 * a))
        x1 = e
        x2 = d
        x3 = b


@triton.jit
def incoming(dy_ptr, again_ptr, dy_row, again_row, t, tokens, c, C: tl.constexpr):
    """The gradient of y at token ``t``, the sum of one or two."""
    dy = token(dy_ptr, dy_row, None, t, tokens, c, C, C, 0)
    if again_ptr is not None:
        dy += token(again_ptr, again_row, None, t, tokens, c, C, C, 0)
    return dy


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
    mask = c < C
    kept: tl.constexpr = TAPS - 1
    x_ptr += batch * tokens * x_row
    dy_ptr += batch * tokens * dy_row
    dx_ptr += batch * tokens * dx_row
    if again_ptr is not None:
        again_ptr += batch * tokens * again_row
    if window_ptr is not None:
        window_ptr += batch * kept * ROW
    w0 = tap(weight_ptr, c, C, ROW, 0, TAPS)
    w1 = tap(weight_ptr, c, C, ROW, 1, TAPS)
    w2 = tap(weight_ptr, c, C, ROW, 2, TAPS)
    w3 = tap(weight_ptr, c, C, ROW, 3, TAPS)
    bias = tl.load(bias_ptr + c, mask=mask, other=0.0).to(tl.float32)
    d0 = tl.zeros_like(bias)
    d1 = tl.zeros_like(bias)
    d2 = tl.zeros_like(bias)
    d3 = tl.zeros_like(bias)
    dbias = tl.zeros_like(bias)
    g1 = tl.zeros_like(bias)
    g2 = tl.zeros_like(bias)
    g3 = tl.zeros_like(bias)
    t = first + SPAN + 2
    x0 = token(x_ptr, x_row, window_ptr, t, tokens, c, C, ROW, kept)
    x1 = token(x_ptr, x_row, window_ptr, t - 1, tokens, c, C, ROW, kept)
    x2 = token(x_ptr, x_row, window_ptr, t - 2, tokens, c, C, ROW, kept)
    for i in tl.static_range(3):  # the tokens behind the span that reach back into it
        x3 = token(x_ptr, x_row, window_ptr, t - 3 - i, tokens, c, C, ROW, kept)
        dy = incoming(dy_ptr, again_ptr, dy_row, again_row, t - i, tokens, c, C)
        g = dy * silu_slope(bias + w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3)
        g3 = g2
        g2 = g1
        g1 = g
        x0 = x1
        x1 = x2
        x2 = x3
    for i in range(0, SPAN, 4):
        t = first + SPAN - 1 - i
        x3 = token(x_ptr, x_row, window_ptr, t - 3, tokens, c, C, ROW, kept)
        x4 = token(x_ptr, x_row, window_ptr, t - 4, tokens, c, C, ROW, kept)
        x5 = token(x_ptr, x_row, window_ptr, t - 5, tokens, c, C, ROW, kept)
        x6 = token(x_ptr, x_row, window_ptr, t - 6, tokens, c, C, ROW, kept)
        ya = incoming(dy_ptr, again_ptr, dy_row, again_row, t, tokens, c, C)
        yb = incoming(dy_ptr, again_ptr, dy_row, again_row, t - 1, tokens, c, C)
        yc = incoming(dy_ptr, again_ptr, dy_row, again_row, t - 2, tokens, c, C)
        yd = incoming(dy_ptr, again_ptr, dy_row, again_row, t - 3, tokens, c, C)
        ga = ya * silu_slope(bias + w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3)
        gb = yb * silu_slope(bias + w0 * x1 + w1 * x2 + w2 * x3 + w3 * x4)
        gc = yc * silu_slope(bias + w0 * x2 + w1 * x3 + w2 * x4 + w3 * x5)
        gd = yd * silu_slope(bias + w0 * x3 + w1 * x4 + w2 * x5 + w3 * x6)
        put(dx_ptr, t, tokens, dx_row, c, C, w0 * ga + w1 * g1 + w2 * g2 + w3 * g3)
        put(dx_ptr, t - 1, tokens, dx_row, c, C, w0 * gb + w1 * ga + w2 * g1 + w3 * g2)
        put(dx_ptr, t - 2, tokens, dx_row, c, C, w0 * gc + w1 * gb + w2 * ga + w3 * g1)
        put(dx_ptr, t - 3, tokens, dx_row, c, C, w0 * gd + w1 * gc + w2 * gb + w3 * ga)
        d0 += ga * x0 + gb * x1 + gc * x2 + gd * x3
        d1 += ga * x1 + gb * x2 + gc * x3 + gd * x4
        d2 += ga * x2 + gb * x3 + gc * x4 + gd * x5
        d3 += ga * x3 + gb * x4 + gc * x5 + gd * x6
        dbias += (ga + gb) + (gc + gd)
        g1 = gd
        g2 = gc
        g3 = gb
        x0 = x4
        x1 = x5
        x2 = x6
    sums_ptr += part.to(tl.int64) * 5 * ROW + c
    tl.store(sums_ptr, d0, mask=mask)
    tl.store(sums_ptr + ROW, d1, mask=mask)
    tl.store(sums_ptr + 2 * ROW, d2, mask=mask)
    tl.store(sums_ptr + 3 * ROW, d3, mask=mask)
    tl.store(sums_ptr + 4 * ROW, dbias, mask=mask)
    if dwindow_ptr is not None:
        early = c < tl.where(first == 0, C, 0)
        last = dwindow_ptr + batch * kept * ROW + (kept - 1) * ROW + c
        tl.store(last, w1 * g1 + w2 * g2 + w3 * g3, mask=early)
        if kept > 1:
            tl.store(last - ROW, w2 * g1 + w3 * g2, mask=early)
        if kept > 2:
            tl.store(last - 2 * ROW, w3 * g1, mask=early)
