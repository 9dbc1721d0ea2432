"""Triton kernels of the chunks' gradients; the forward ones are in ``kernel_chunks``."""

import triton
import triton.language as tl

from kssm.ops.matrix_scan.kernel_chunks import kept_between, row_end, store_tile, token_tile


@triton.jit(do_not_specialize=["tokens", "chunks", "segments", "span"])
def adjoints_kernel(
    key_ptr, value_ptr, decay_ptr, lengths_ptr, start_ptr, state_ptr, kept_ptr, dend_ptr, flow_ptr,
    end_ptr, lost_ptr,
    row_value, tokens, chunks, segments, span,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, W: tl.constexpr, Q: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """As ``states_kernel`` for the states' adjoints, from the row's end; key, value: C and dy.

    kept [B, K, H, W, P] (or None): the adjoint behind each chunk, and with it, from the states
    [B, K + 1, H, W, P], dend [B, K, H]: the gradient of the chunk's whole log decay by its last
    state, flow [B, K, H, W]: that of turning this state, in two halves to be added.
    """
    head = tl.program_id(0) % H
    segment = (tl.program_id(0) // H) % segments
    row = tl.program_id(0) // (H * segments)
    group = head // (H // G)
    end = row_end(lengths_ptr, row, tokens)
    w = tl.arange(0, W)
    p = tl.arange(0, P)
    t = tl.arange(0, Q)
    gate_row = (row * H + head).to(tl.int64) * (chunks * Q)
    tile = w[:, None] * P + p[None, :]
    mirrored = tl.where(w < W // 2, w + W // 2, w - W // 2)[:, None] * P + p[None, :]
    own = ((row * segments + segment) * H + head).to(tl.int64)
    h = tl.zeros([W, P], dtype=tl.float32)
    if start_ptr is not None:
        h = tl.load(start_ptr + own * (W * P) + tile)
    lost = 0.0
    begin = segment * span
    stop = tl.minimum(begin + span, tl.cdiv(end, Q))
    for step in tl.range(begin, stop, num_stages=STAGES):
        chunk = begin + stop - 1 - step
        if kept_ptr is not None:
            at = ((row * chunks + chunk) * H + head).to(tl.int64)
            tl.store(kept_ptr + at * (W * P) + tile, h.to(kept_ptr.dtype.element_ty))
            behind = ((row * (chunks + 1) + chunk + 1) * H + head).to(tl.int64) * (W * P)
            state = tl.load(state_ptr + behind + tile).to(tl.float32)
            tl.store(dend_ptr + at, tl.sum(tl.sum(h * state, axis=1), axis=0))
            state = tl.load(state_ptr + behind + mirrored).to(tl.float32)
            sign = tl.where(w < W // 2, 1.0, -1.0)
            tl.store(flow_ptr + at * W + w, sign * tl.sum(h * state, axis=1))
        first = row.to(tl.int64) * tokens + chunk * Q
        room = end - chunk * Q
        key = token_tile(key_ptr + group * W, first, t, room, G * W, w)
        value = token_tile(value_ptr + head * P, first, t, room, row_value, p)
        gate = gate_row + chunk * Q
        total = tl.load(decay_ptr + gate + Q - 1)
        grown = tl.exp2(tl.load(decay_ptr + gate + t))
        scaled = (tl.trans(key).to(tl.float32) * grown[None, :]).to(value.dtype)
        h = tl.dot(scaled, value, acc=h * tl.exp2(total), input_precision=PRECISION)
        lost += total
    tl.store(end_ptr + own * (W * P) + tile, h)
    tl.store(lost_ptr + own, lost)


@triton.jit(do_not_specialize=["tokens", "chunks"])
def chunk_backward_kernel(
    x_ptr, dy_ptr, b_ptr, c_ptr, decay_ptr, weight_ptr, lengths_ptr, state_ptr, dstate_ptr,
    dx_ptr, db_ptr, dc_ptr, ddecay_ptr, dweight_ptr,
    row_x, row_dy, tokens, chunks,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, W: tl.constexpr, Q: tl.constexpr,
    PARTS: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The gradients of one chunk's tokens, for H / (G PARTS) heads one after another.

    B, C and their scores are taken up anew for every head: kept, they would not fit in registers.

    state [B, K + 1, H, W, P] before the chunk, dstate [B, K, H, W, P]: the adjoint behind it.
    db, dc [PARTS, B, T, G, W]; ddecay, dweight [B, H, K Q] in natural units.
    """
    heads: tl.constexpr = H // (G * PARTS)
    part = tl.program_id(0) % PARTS
    group = (tl.program_id(0) // PARTS) % G
    chunk = (tl.program_id(0) // (PARTS * G)) % chunks
    row = tl.program_id(0) // (PARTS * G * chunks)
    rows = tl.num_programs(0) // (PARTS * G * chunks)
    w = tl.arange(0, W)
    p = tl.arange(0, P)
    t = tl.arange(0, Q)
    first = row.to(tl.int64) * tokens + chunk * Q
    room = row_end(lengths_ptr, row, tokens) - chunk * Q
    kind = x_ptr.dtype.element_ty
    tile = w[:, None] * P + p[None, :]
    db = tl.zeros([Q, W], dtype=tl.float32)
    dc = tl.zeros([Q, W], dtype=tl.float32)
    begin = group * (H // G) + part * heads
    stop = begin + heads
    if lengths_ptr is not None:
        stop = tl.where(room > 0, stop, begin)
    for head in tl.range(begin, stop, num_stages=STAGES):
        b = token_tile(b_ptr + group * W, first, t, room, G * W, w)
        c = token_tile(c_ptr + group * W, first, t, room, G * W, w)
        x = token_tile(x_ptr + head * P, first, t, room, row_x, p)
        dy = token_tile(dy_ptr + head * P, first, t, room, row_dy, p)
        own = ((row * chunks + chunk) * H + head).to(tl.int64)
        state = tl.load(state_ptr + (own + row * H) * (W * P) + tile)
        dstate = tl.load(dstate_ptr + own * (W * P) + tile)
        gate = (row * H + head).to(tl.int64) * (chunks * Q) + chunk * Q
        decay = tl.load(decay_ptr + gate + t)
        weight = tl.load(weight_ptr + gate + t)
        total = tl.load(decay_ptr + gate + Q - 1)
        kept = kept_between(decay, weight, t)
        left = tl.exp2(total - weight)

        scores = tl.dot(c, tl.trans(b), input_precision=PRECISION)
        inside = (scores * kept).to(kind)
        dx = tl.dot(b, dstate, input_precision=PRECISION) * left[:, None]
        dx = tl.dot(tl.trans(inside), dy, acc=dx, input_precision=PRECISION)
        store_tile(dx_ptr + head * P, dx, first, t, room, H * P, p)

        dinside = (tl.dot(dy, tl.trans(x), input_precision=PRECISION) * kept).to(kind)
        own_dc = tl.dot(dy, tl.trans(state), input_precision=PRECISION)
        own_dc *= tl.exp2(decay)[:, None]
        own_dc = tl.dot(dinside, b, acc=own_dc, input_precision=PRECISION)
        dc += own_dc
        tl.store(ddecay_ptr + gate + t, tl.sum(own_dc * c.to(tl.float32), axis=1))
        own_db = tl.dot(x, tl.trans(dstate), input_precision=PRECISION) * left[:, None]
        own_db = tl.dot(tl.trans(dinside), c, acc=own_db, input_precision=PRECISION)
        db += own_db
        tl.store(dweight_ptr + gate + t, -tl.sum(own_db * b.to(tl.float32), axis=1))
    base = (part * rows + row).to(tl.int64) * tokens + chunk * Q
    store_tile(db_ptr + group * W, db, base, t, tokens - chunk * Q, G * W, w)
    store_tile(dc_ptr + group * W, dc, base, t, tokens - chunk * Q, G * W, w)
