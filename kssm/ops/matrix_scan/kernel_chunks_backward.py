"""Triton kernels of the chunks' gradients; the forward ones are in ``kernel_chunks``."""

import triton
import triton.language as tl

from kssm.ops.matrix_scan.kernel_chunks import (
    add_outer,
    add_outer_unrounded,
    kept_between,
    own_segment,
    read,
    row_end,
    shrunk,
    store_tile,
    write,
)


@triton.jit
def weigh_states(
    h, state_ptr, total, carried_ptr, flow_ptr, at, before, behind,
    P: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """Stores what the decay of the state before a chunk and the turn of the state behind it
    change, by the latter's adjoint h [W, P]."""
    half: tl.constexpr = W // 2
    w = tl.arange(0, W)
    p = tl.arange(0, P)
    state = tl.load(state_ptr + before * (W * P) + w[:, None] * P + p[None, :]).to(tl.float32)
    tl.store(carried_ptr + at, tl.sum(tl.sum(h * state, axis=1), axis=0) * shrunk(total))
    if flow_ptr is not None:
        mirrored = tl.where(w < half, w + half, w - half)[:, None] * P + p[None, :]
        state = tl.load(state_ptr + behind * (W * P) + mirrored).to(tl.float32)
        sign = tl.where(w < half, 1.0, -1.0)
        tl.store(flow_ptr + at * W + w, sign * tl.sum(h * state, axis=1))


@triton.jit(do_not_specialize=["tokens", "chunks", "segments", "span"])
def adjoints_kernel(
    key_ptr, rest_ptr, value_ptr, decay_ptr, lengths_ptr, start_ptr, state_ptr,
    kept_ptr, carried_ptr, flow_ptr, end_ptr, lost_ptr,
    row_value, tokens, chunks, segments, span,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, W: tl.constexpr, Q: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr, TILED: tl.constexpr, ROUNDED: tl.constexpr,
):  # fmt: skip
    """As ``states_kernel`` for the states' adjoints, from the row's end; key, value: C and dy.

    kept [B, K, H, W, P] (or None): the adjoint behind each chunk, and with it, from the states
    [B, K + 1, H, W, P], carried [B, K, H]: the gradient of the chunk's whole log decay by what it
    leaves of the state before, flow [B, K, H, W] (or None): that of turning the state behind, in
    two halves to be added.
    """
    head, group, segment, row, end, gates, own, tile, h = own_segment(
        lengths_ptr, start_ptr, tokens, chunks, segments, H, G, P, W, Q
    )
    t = tl.arange(0, Q)
    lost = 0.0
    begin = segment * span
    stop = tl.minimum(begin + span, tl.cdiv(end, Q))
    if kept_ptr is None:  # nobody asks where the first segment ends
        stop = tl.where(segment == 0, 0, stop)
    for step in tl.range(begin, stop, num_stages=STAGES):
        chunk = begin + stop - 1 - step
        gate = gates + chunk * Q
        total = tl.load(decay_ptr + gate + Q - 1)
        if kept_ptr is not None:
            at = ((row * chunks + chunk) * H + head).to(tl.int64)
            tl.store(kept_ptr + at * (W * P) + tile, h.to(kept_ptr.dtype.element_ty))
            before = at + row * H
            weigh_states(h, state_ptr, total, carried_ptr, flow_ptr, at, before, before + H, P, W)
        first = row.to(tl.int64) * tokens + chunk * Q
        room = end - chunk * Q
        key = read(key_ptr, first, group * W, t, room, G * W, W, TILED)
        value = read(value_ptr, first, head * P, t, room, row_value, P, TILED)
        grown = shrunk(tl.load(decay_ptr + gate + t))
        h *= shrunk(total)
        if ROUNDED:
            h = add_outer(h, key, value, grown, PRECISION)
        else:
            rest = None
            if rest_ptr is not None:
                rest = read(rest_ptr, first, group * W, t, room, G * W, W, TILED)
            h = add_outer_unrounded(h, key, rest, value, grown, PRECISION)
        lost += total.to(tl.float32)
    tl.store(end_ptr + own * (W * P) + tile, h)
    tl.store(lost_ptr + own, lost)


@triton.jit
def passing(met, read, pushed, carried, t, Q: tl.constexpr):
    """[Q]: the gradient of the log decay of token t + 1 (the last: of token 0), summed directly.

    met [Q, Q]: what token i reads of the input of token j <= i; read [Q]: of the state before the
    chunk; pushed [Q]: what token j leaves in the state behind; carried: the state before in it.
    """
    later = t[:, None] > t[None, :]
    spans = tl.cumsum(tl.where(later, met, 0.0), axis=1) + read[:, None]
    others = tl.where((t == Q - 1)[None, :], read[:, None], pushed[:, None])
    return tl.sum(tl.where(later, spans, others), axis=0) + carried


@triton.jit
def head_backward(
    db, dc, scores, b, c, x, dy, state, dstate, decay, weight, total, carried, t,
    Q: tl.constexpr, DIRECT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The part of one head in a chunk: db and dc with its part added; its dx, ddecay and dweight.

    ddecay is in the order of ``passing`` where DIRECT.
    The gradient of a token's decay is a sum over all that passes it. As a difference of the sums
    of what is read and what is written (the cheap way) it cancels where decays are strong. Both
    are made of the same numbers, so that what is rounded before cancels with them.
    """
    kind = x.dtype
    left = shrunk(total - weight)
    recalled = tl.dot(dy, tl.trans(state), input_precision=PRECISION) * shrunk(decay)[:, None]
    from_state = tl.sum(recalled * c.to(tl.float32), axis=1)
    dc += recalled
    push = tl.dot(x, tl.trans(dstate), input_precision=PRECISION) * left[:, None]
    pushed = tl.sum(push * b.to(tl.float32), axis=1)
    db += push
    kept = kept_between(decay, weight, t)
    asked = tl.dot(dy, tl.trans(x), input_precision=PRECISION) * kept
    met = asked * scores
    asked_by, asked_of = tl.sum(met, axis=1), tl.sum(met, axis=0)
    inside = (scores * kept).to(kind)
    asked = asked.to(kind)
    dc = tl.dot(asked, b, acc=dc, input_precision=PRECISION)
    db = tl.dot(tl.trans(asked), c, acc=db, input_precision=PRECISION)
    dx = tl.dot(b, dstate, input_precision=PRECISION) * left[:, None]
    dx = tl.dot(tl.trans(inside), dy, acc=dx, input_precision=PRECISION)
    written = pushed + asked_of
    if DIRECT:
        ddecay = passing(met, from_state, pushed, carried, t, Q)
    else:
        ddecay = from_state + asked_by - written
        ddecay = tl.cumsum(ddecay, axis=0, reverse=True) + (tl.sum(pushed, axis=0) + carried)
    return db, dc, dx, ddecay, -written


@triton.jit
def read_state(source, own, W: tl.constexpr, P: tl.constexpr, TILED: tl.constexpr):
    """[W, P]: one of many states; TILED: see ``read``."""
    if TILED:
        state = source.load([(own * W).to(tl.int32), 0])
    else:
        tile = tl.arange(0, W)[:, None] * P + tl.arange(0, P)[None, :]
        state = tl.load(source + own * (W * P) + tile)
    return state


@triton.jit(do_not_specialize=["tokens", "chunks"])
def chunk_backward_kernel(
    x_ptr, dy_ptr, b_ptr, c_ptr, b_rest_ptr, c_rest_ptr, decay_ptr, weight_ptr, lengths_ptr,
    state_ptr, dstate_ptr, carried_ptr, dx_ptr, db_ptr, dc_ptr, ddecay_ptr, dweight_ptr,
    row_x, row_dy, tokens, chunks,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, W: tl.constexpr, Q: tl.constexpr,
    PARTS: tl.constexpr, DIRECT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
    TILED: tl.constexpr,
):  # fmt: skip
    """The gradients of one chunk's tokens, for H / (G PARTS) heads one after another.

    B, C and their scores are taken up anew for every head: kept, they would not fit in registers.

    state [B, K + 1, H, W, P] before the chunk, dstate [B, K, H, W, P]: the adjoint behind it,
    carried [B, K, H]: see ``adjoints_kernel``.
    db, dc [PARTS, B, T, G, W]. ddecay [B, H, K Q]: of each token's own log decay, dweight: of its
    log gain, negated; both in natural units.
    """
    heads: tl.constexpr = H // (G * PARTS)
    part = tl.program_id(0) % PARTS
    group = (tl.program_id(0) // PARTS) % G
    chunk = (tl.program_id(0) // (PARTS * G)) % chunks
    row = tl.program_id(0) // (PARTS * G * chunks)
    rows = tl.num_programs(0) // (PARTS * G * chunks)
    w = tl.arange(0, W)
    t = tl.arange(0, Q)
    first = row.to(tl.int64) * tokens + chunk * Q
    room = row_end(lengths_ptr, row, tokens) - chunk * Q
    db = tl.zeros([Q, W], dtype=tl.float32)
    dc = tl.zeros([Q, W], dtype=tl.float32)
    begin = group * (H // G) + part * heads
    stop = begin + heads
    if lengths_ptr is not None:
        stop = tl.where(room > 0, stop, begin)
    b = read(b_ptr, first, group * W, t, room, G * W, W, TILED)
    c = read(c_ptr, first, group * W, t, room, G * W, W, TILED)
    scores = tl.dot(c, tl.trans(b), input_precision=PRECISION)
    if b_rest_ptr is not None:
        rest = read(b_rest_ptr, first, group * W, t, room, G * W, W, TILED)
        scores = tl.dot(c, tl.trans(rest), acc=scores, input_precision=PRECISION)
        rest = read(c_rest_ptr, first, group * W, t, room, G * W, W, TILED)
        scores = tl.dot(rest, tl.trans(b), acc=scores, input_precision=PRECISION)
    for head in tl.range(begin, stop, num_stages=STAGES):
        b = read(b_ptr, first, group * W, t, room, G * W, W, TILED)
        c = read(c_ptr, first, group * W, t, room, G * W, W, TILED)
        x = read(x_ptr, first, head * P, t, room, row_x, P, TILED)
        dy = read(dy_ptr, first, head * P, t, room, row_dy, P, TILED)
        own = ((row * chunks + chunk) * H + head).to(tl.int64)
        state = read_state(state_ptr, own + row * H, W, P, TILED)
        dstate = read_state(dstate_ptr, own, W, P, TILED)
        gate = (row * H + head).to(tl.int64) * (chunks * Q) + chunk * Q
        db, dc, dx, ddecay, dweight = head_backward(
            db, dc, scores, b, c, x, dy, state, dstate,
            tl.load(decay_ptr + gate + t), tl.load(weight_ptr + gate + t),
            tl.load(decay_ptr + gate + Q - 1), tl.load(carried_ptr + own),
            t, Q, DIRECT, PRECISION,
        )  # fmt: skip
        write(dx_ptr, dx, first, head * P, t, room, H * P, P, TILED)
        own_token = (t + 1) % Q if DIRECT else t
        tl.store(ddecay_ptr + gate + own_token, ddecay)
        tl.store(dweight_ptr + gate + t, dweight)
    base = (part * rows + row).to(tl.int64) * tokens + chunk * Q
    store_tile(db_ptr + group * W, db, base, t, tokens - chunk * Q, G * W, w)
    store_tile(dc_ptr + group * W, dc, base, t, tokens - chunk * Q, G * W, w)
