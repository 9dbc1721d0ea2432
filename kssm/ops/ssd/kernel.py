"""Triton kernels of state-space duality: matrix products over chunks of tokens.

``total`` is the running sum of a chunk's log-decays, inclusive and in fp64: after one strong decay,
sums in fp32 would blur the small differences behind it. Rows i and columns j of a square are the
tokens of a chunk; E_ij = exp(total_i - total_j) for j <= i, else 0.
"""

import triton
import triton.language as tl


@triton.jit
def _tile(ptr, token, row_stride, L: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """[L, BLOCK] numbers of L tokens, zeros beyond WIDTH."""
    place = tl.arange(0, BLOCK)
    ptrs = ptr + (token + tl.arange(0, L))[:, None] * row_stride + place[None, :]
    return tl.load(ptrs, mask=(place < WIDTH)[None, :], other=0.0)


@triton.jit
def _store_tile(
    ptr, value, token, row_stride, L: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    place = tl.arange(0, BLOCK)
    ptrs = ptr + (token + tl.arange(0, L))[:, None] * row_stride + place[None, :]
    tl.store(ptrs, value, mask=(place < WIDTH)[None, :])


@triton.jit
def _state(ptr, P: tl.constexpr, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr):
    """(pointers, mask) of a state [P, N]."""
    p, n = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    return ptr + p[:, None] * N + n[None, :], (p < P)[:, None] & (n < N)[None, :]


@triton.jit
def _column(ptr, token, H: tl.constexpr, L: tl.constexpr):
    """One number a token, [L]."""
    return tl.load(ptr + (token + tl.arange(0, L)) * H)


@triton.jit
def _decays(total, L: tl.constexpr):
    """E [L, L]."""
    place = tl.arange(0, L)
    difference = (total[:, None] - total[None, :]).to(tl.float32)
    return tl.where(place[:, None] >= place[None, :], tl.exp(difference), 0.0)


@triton.jit
def push_kernel(
    x_ptr, weight_ptr, b_ptr, out_ptr,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, N: tl.constexpr, L: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """sum_l weight_l x_l^T b_l of a chunk: [B T, H, P], [B T, H], [B T, G, N] -> [B K, H, P, N]."""
    head = tl.program_id(0) % H
    chunk = (tl.program_id(0) // H).to(tl.int64)
    token = chunk * L
    x = _tile(x_ptr + head * P, token, H * P, L, P, BLOCK_P)
    weight = _column(weight_ptr + head, token, H, L)
    b = _tile(b_ptr + (head // (H // G)) * N, token, G * N, L, N, BLOCK_N)
    pushed = tl.dot(tl.trans(x * weight[:, None]), b, input_precision=PRECISION)
    ptrs, mask = _state(out_ptr + (chunk * H + head) * (P * N), P, N, BLOCK_P, BLOCK_N)
    tl.store(ptrs, pushed, mask=mask)


@triton.jit
def forward_kernel(
    x_ptr, step_ptr, total_ptr, b_ptr, c_ptr, start_ptr, y_ptr,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, N: tl.constexpr, L: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y of a chunk from the state before it, start [B K, H, P, N]."""
    head = tl.program_id(0) % H
    chunk = (tl.program_id(0) // H).to(tl.int64)
    token = chunk * L
    shared = (head // (H // G)) * N
    b = _tile(b_ptr + shared, token, G * N, L, N, BLOCK_N)
    c = _tile(c_ptr + shared, token, G * N, L, N, BLOCK_N)
    total = _column(total_ptr + head, token, H, L)
    weights = tl.dot(c, tl.trans(b), input_precision=PRECISION) * _decays(total, L)
    x = _tile(x_ptr + head * P, token, H * P, L, P, BLOCK_P)
    step = _column(step_ptr + head, token, H, L)
    y = tl.dot(weights, x * step[:, None], input_precision=PRECISION)
    ptrs, mask = _state(start_ptr + (chunk * H + head) * (P * N), P, N, BLOCK_P, BLOCK_N)
    start = tl.load(ptrs, mask=mask, other=0.0)
    since = tl.exp(total.to(tl.float32))
    y += since[:, None] * tl.dot(c, tl.trans(start), input_precision=PRECISION)
    _store_tile(y_ptr + head * P, y, token, H * P, L, P, BLOCK_P)


@triton.jit
def backward_kernel(
    x_ptr, step_ptr, total_ptr, b_ptr, c_ptr, dy_ptr, start_ptr, end_ptr,
    du_ptr, db_ptr, dc_ptr, d_log_ptr,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, N: tl.constexpr, L: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a chunk and a head; end: gradient of the state behind it [B K, H, P, N].

    du: of step x. db, dc: [B T, H, N], this head's part. d_log [B T, H]: of the log-decays. A
    token's is the sum over all that passes it, from an earlier token or the state before the chunk
    to a later token (or the token itself) or the state behind it. Adding that up directly loses
    no digits; differences of row and column sums would, where decays are strong.
    """
    head = tl.program_id(0) % H
    chunk = (tl.program_id(0) // H).to(tl.int64)
    token = chunk * L
    place = tl.arange(0, L)
    shared = (head // (H // G)) * N
    b = _tile(b_ptr + shared, token, G * N, L, N, BLOCK_N)
    c = _tile(c_ptr + shared, token, G * N, L, N, BLOCK_N)
    dy = _tile(dy_ptr + head * P, token, H * P, L, P, BLOCK_P)
    step = _column(step_ptr + head, token, H, L)
    u = _tile(x_ptr + head * P, token, H * P, L, P, BLOCK_P) * step[:, None]
    total = _column(total_ptr + head, token, H, L)
    last = tl.load(total_ptr + (token + L - 1) * H + head)
    since = tl.exp(total.to(tl.float32))
    until = tl.exp((last - total).to(tl.float32))
    ptrs, mask = _state(start_ptr + (chunk * H + head) * (P * N), P, N, BLOCK_P, BLOCK_N)
    start = tl.load(ptrs, mask=mask, other=0.0)
    ptrs, mask = _state(end_ptr + (chunk * H + head) * (P * N), P, N, BLOCK_P, BLOCK_N)
    end = tl.load(ptrs, mask=mask, other=0.0)

    decays = _decays(total, L)
    scores = tl.dot(c, tl.trans(b), input_precision=PRECISION)
    asked = tl.dot(dy, tl.trans(u), input_precision=PRECISION) * decays
    du = tl.dot(tl.trans(scores * decays), dy, input_precision=PRECISION)
    du += until[:, None] * tl.dot(b, tl.trans(end), input_precision=PRECISION)
    _store_tile(du_ptr + head * P, du, token, H * P, L, P, BLOCK_P)

    read = since[:, None] * tl.dot(dy, start, input_precision=PRECISION)
    dc = tl.dot(asked, b, input_precision=PRECISION) + read
    _store_tile(dc_ptr + head * N, dc, token, H * N, L, N, BLOCK_N)
    push = until[:, None] * tl.dot(u, end, input_precision=PRECISION)
    db = tl.dot(tl.trans(asked), c, input_precision=PRECISION) + push
    _store_tile(db_ptr + head * N, db, token, H * N, L, N, BLOCK_N)

    later = place[:, None] >= place[None, :]  # rows: a token i or j, columns: the one passed
    met = tl.where(place[:, None] > place[None, :], asked * scores, 0.0)
    spans = tl.dot(met, tl.where(later, 0.0, 1.0), input_precision=PRECISION)
    arriving = tl.where(later, spans + tl.sum(c * read, axis=1)[:, None], 0.0)
    leaving = tl.where(later, 0.0, tl.sum(b * push, axis=1)[:, None])
    d_log = tl.sum(arriving + leaving, axis=0)
    d_log += tl.exp(last.to(tl.float32)) * tl.sum(tl.sum(start * end, axis=1), axis=0)
    tl.store(d_log_ptr + (token + place) * H + head, d_log)
