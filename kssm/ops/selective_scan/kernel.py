"""Triton kernels of the selective scan: tokens walked inside chunks, channels side by side.

A program holds the states of BLOCK_D channels as a tile [N, BLOCK_D], so that the sum over a
channel's states stays inside a thread. Steps are positive and ``a`` comes times log2(e): decays
are exp2(step a).
"""

import triton
import triton.language as tl


@triton.jit
def _locate(D: tl.constexpr, BLOCK_D: tl.constexpr):
    """(chunk counted over all rows, block, channels) of this program."""
    blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    block = tl.program_id(0) % blocks
    chunk = (tl.program_id(0) // blocks).to(tl.int64)
    return chunk, block, block * BLOCK_D + tl.arange(0, BLOCK_D)


@triton.jit
def _span(chunk, chunks, tokens, size):
    """(number of the chunk's first token over all rows, its tokens)."""
    first = (chunk % chunks) * size
    return (chunk // chunks) * tokens + first, tl.minimum(size, tokens - first).to(tl.int32)


@triton.jit(do_not_specialize=["tokens", "chunks", "size"])
def summary_kernel(
    x_ptr, step_ptr, a_ptr, b_ptr, out_ptr, tokens, chunks, size,
    D: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    REVERSE: tl.constexpr,
):  # fmt: skip
    """What a chunk adds to the state behind it, [B, K, N, D].

    With REVERSE, x and b are dy and c, and it is what the chunk asks of the state before it.
    """
    chunk, _, d = _locate(D, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    in_d, in_n = d < D, n < N
    mask = in_n[:, None] & in_d[None, :]
    a = tl.load(a_ptr + n[:, None] * D + d[None, :], mask=mask, other=0.0)
    first, count = _span(chunk, chunks, tokens, size)
    state = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for i in range(count):
        token = first + i
        if REVERSE:
            token = first + count - 1 - i
        x = tl.load(x_ptr + token * D + d, mask=in_d, other=0.0)
        step = tl.load(step_ptr + token * D + d, mask=in_d, other=0.0)
        b = tl.load(b_ptr + token * N + n, mask=in_n, other=0.0)
        decay = tl.exp2(step[None, :] * a)
        if REVERSE:
            state = (state + b[:, None] * x[None, :]) * decay
        else:
            state = state * decay + b[:, None] * (step * x)[None, :]
    tl.store(out_ptr + chunk * (N * D) + n[:, None] * D + d[None, :], state, mask=mask)


@triton.jit(do_not_specialize=["tokens", "chunks", "size", "saves"])
def forward_kernel(
    x_ptr, step_ptr, a_ptr, b_ptr, c_ptr, start_ptr, y_ptr, saved_ptr,
    tokens, chunks, size, saves,
    D: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    SUB: tl.constexpr,
):  # fmt: skip
    """y of a chunk from the state before it; saved [B, saves, N, D] every SUB tokens, or None."""
    chunk, _, d = _locate(D, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    in_d, in_n = d < D, n < N
    mask = in_n[:, None] & in_d[None, :]
    tile = n[:, None] * D + d[None, :]
    a = tl.load(a_ptr + tile, mask=mask, other=0.0)
    state = tl.load(start_ptr + chunk * (N * D) + tile, mask=mask, other=0.0)
    first, count = _span(chunk, chunks, tokens, size)
    for i in range(count):
        token = first + i
        if saved_ptr is not None:
            if i % SUB == 0:
                place = (chunk // chunks) * saves + ((chunk % chunks) * size + i) // SUB
                tl.store(saved_ptr + place * (N * D) + tile, state, mask=mask)
        x = tl.load(x_ptr + token * D + d, mask=in_d, other=0.0)
        step = tl.load(step_ptr + token * D + d, mask=in_d, other=0.0)
        b = tl.load(b_ptr + token * N + n, mask=in_n, other=0.0)
        c = tl.load(c_ptr + token * N + n, mask=in_n, other=0.0)
        state = state * tl.exp2(step[None, :] * a) + b[:, None] * (step * x)[None, :]
        tl.store(y_ptr + token * D + d, tl.sum(c[:, None] * state, axis=0), mask=in_d)


@triton.jit
def _token(x_ptr, step_ptr, b_ptr, token, d, n, D: tl.constexpr, N: tl.constexpr, live):
    """x, step [BLOCK_D] and b [BLOCK_N] of a token; zeros, which change nothing, if not live."""
    x = tl.load(x_ptr + token * D + d, mask=d < tl.where(live, D, 0), other=0.0)
    step = tl.load(step_ptr + token * D + d, mask=d < tl.where(live, D, 0), other=0.0)
    b = tl.load(b_ptr + token * N + n, mask=n < tl.where(live, N, 0), other=0.0)
    return x, step, b


@triton.jit(do_not_specialize=["tokens", "chunks", "size", "saves"])
def backward_kernel(
    x_ptr, step_ptr, a_ptr, b_ptr, c_ptr, dy_ptr, saved_ptr, end_ptr,
    dx_ptr, dstep_ptr, db_ptr, dc_ptr, da_ptr, tokens, chunks, size, saves,
    D: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    SUB: tl.constexpr,
):  # fmt: skip
    """All gradients of a chunk, SUB tokens at a time from the last to the first.

    Their states are computed again from the one saved before them. end: gradient of the state
    behind the chunk [B, K, N, D]. db, dc: [B, T, blocks, N] and da: [B, K, N, D] are parts of sums.
    """
    blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    chunk, block, d = _locate(D, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    in_d, in_n = d < D, n < N
    mask = in_n[:, None] & in_d[None, :]
    tile = n[:, None] * D + d[None, :]
    a = tl.load(a_ptr + tile, mask=mask, other=0.0)
    grad = tl.load(end_ptr + chunk * (N * D) + tile, mask=mask, other=0.0)
    da = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    first, count = _span(chunk, chunks, tokens, size)
    groups = (count + SUB - 1) // SUB
    for g in range(groups):
        offset = (groups - 1 - g) * SUB
        place = (chunk // chunks) * saves + ((chunk % chunks) * size + offset) // SUB
        state = tl.load(saved_ptr + place * (N * D) + tile, mask=mask, other=0.0)
        before = (state,)
        for u in tl.static_range(SUB):
            live = offset + u < count
            x, step, b = _token(
                x_ptr, step_ptr, b_ptr, first + offset + u, d, n, D, N, live
            )  # fmt: skip
            state = state * tl.exp2(step[None, :] * a) + b[:, None] * (step * x)[None, :]
            before = before + (state,)
        for v in tl.static_range(SUB):
            live = offset + SUB - 1 - v < count
            token = first + offset + SUB - 1 - v
            x, step, b = _token(x_ptr, step_ptr, b_ptr, token, d, n, D, N, live)
            dy, _, c = _token(dy_ptr, step_ptr, c_ptr, token, d, n, D, N, live)
            live_d = d < tl.where(live, D, 0)
            live_n = n < tl.where(live, N, 0)
            part = (token * blocks + block) * N + n
            grad += c[:, None] * dy[None, :]
            tl.store(dc_ptr + part, tl.sum(before[SUB - v] * dy[None, :], axis=1), mask=live_n)
            tl.store(db_ptr + part, tl.sum(grad * (step * x)[None, :], axis=1), mask=live_n)
            on_input = tl.sum(grad * b[:, None], axis=0)
            tl.store(dx_ptr + token * D + d, step * on_input, mask=live_d)
            decay = tl.exp2(step[None, :] * a)
            on_decay = grad * before[SUB - 1 - v] * decay
            dstep = x * on_input + 0.6931471805599453 * tl.sum(on_decay * a, axis=0)
            tl.store(dstep_ptr + token * D + d, dstep, mask=live_d)
            da += step[None, :] * on_decay
            grad = grad * decay
    tl.store(da_ptr + chunk * (N * D) + tile, da, mask=mask)
