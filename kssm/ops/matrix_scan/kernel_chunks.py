"""Triton kernels of the chunks: outputs, and states between chunks.

A program of the first two walks along the chunks of a segment of a row for one head, its state
[W, P] in registers: ``h_t = 2^(log2 decay) h_{t-1} + gain b_t x_t``, ``y_t = c_t h_t``, with one
decay a head. ``decay`` [B, H, K Q] is the log2 decay since the chunk's start, ``weight`` that minus
the log2 gain: between tokens j <= i of a chunk the state loses 2^(decay_i - weight_j). Both are
fp32, or fp64 where their differences must not blur.
"""

import triton
import triton.language as tl


@triton.jit
def row_end(lengths_ptr, row, tokens):
    end = tokens
    if lengths_ptr is not None:
        end = tl.minimum(tl.load(lengths_ptr + row).to(tl.int32), tokens)
    return end


@triton.jit
def token_tile(ptr, first, t, room, stride, column):
    """[Q, columns] of the tokens behind ``first`` (int64), zeros where there is no room."""
    place = ptr + first * stride + (t[:, None] * stride + column[None, :])
    return tl.load(place, mask=(t < room)[:, None], other=0.0)


@triton.jit
def store_tile(ptr, value, first, t, room, stride, column):
    place = ptr + first * stride + (t[:, None] * stride + column[None, :])
    tl.store(place, value.to(ptr.dtype.element_ty), mask=(t < room)[:, None])


@triton.jit
def read(source, first, start, t, room, stride, WIDTH: tl.constexpr, TILED: tl.constexpr):
    """As ``token_tile``, for the columns from ``start``. TILED: source is a tensor descriptor,
    whose tiles the memory unit fetches on its own; the tile lies within the row."""
    if TILED:
        tile = source.load([first.to(tl.int32), start])
    else:
        tile = token_tile(source + start, first, t, room, stride, tl.arange(0, WIDTH))
    return tile


@triton.jit
def write(target, value, first, start, t, room, stride, WIDTH: tl.constexpr, TILED: tl.constexpr):
    """As ``store_tile``, for the columns from ``start``; TILED: see ``read``."""
    if TILED:
        target.store([first.to(tl.int32), start], value.to(target.dtype))
    else:
        store_tile(target + start, value, first, t, room, stride, tl.arange(0, WIDTH))


@triton.jit
def kept_between(decay, weight, t):
    """[Q, Q]: what is left at token i of the input of token j <= i, else 0."""
    log = (decay[:, None] - weight[None, :]).to(tl.float32)
    return tl.exp2(tl.where(t[:, None] >= t[None, :], log, float("-inf")))


@triton.jit
def shrunk(log2):
    """2^log2 in fp32."""
    return tl.exp2(log2.to(tl.float32))


@triton.jit
def add_outer(h, key, value, weight, PRECISION: tl.constexpr):
    """h [W, P] and the sum over tokens of weight key value, the narrower of the two weighed."""
    if key.shape[1] > value.shape[1]:
        weighed = value * weight.to(value.dtype)[:, None]
        h = tl.dot(tl.trans(key), weighed, acc=h, input_precision=PRECISION)
    else:
        weighed = tl.trans(key) * weight.to(key.dtype)[None, :]
        h = tl.dot(weighed, value, acc=h, input_precision=PRECISION)
    return h


@triton.jit
def weighed_unrounded(factor, rest, weight):
    """The product of 16-bit factors and fp32 weights as two numbers of 16 bits, the rounded product
    and what it has lost; rest: what the factors have lost before (None = nothing)."""
    coarse = weight.to(factor.dtype)
    fine = (weight - coarse.to(tl.float32)).to(factor.dtype)
    product = factor * coarse
    lost = tl.fma(factor, fine, tl.fma(factor, coarse, -product))
    if rest is not None:
        lost = tl.fma(rest, coarse, lost)
    return product, lost


@triton.jit
def add_outer_unrounded(h, key, rest, value, weight, PRECISION: tl.constexpr):
    """As ``add_outer`` for 16-bit factors: what the weighed one loses when rounded is added too.
    rest: what the key has lost before (None = nothing)."""
    if key.shape[1] > value.shape[1]:
        weighed, lost = weighed_unrounded(value, None, weight[:, None])
        h = tl.dot(tl.trans(key), weighed, acc=h, input_precision=PRECISION)
        h = tl.dot(tl.trans(key), lost, acc=h, input_precision=PRECISION)
        if rest is not None:
            h = tl.dot(tl.trans(rest), weighed, acc=h, input_precision=PRECISION)
    else:
        rest = tl.trans(rest) if rest is not None else None
        weighed, lost = weighed_unrounded(tl.trans(key), rest, weight[None, :])
        h = tl.dot(weighed, value, acc=h, input_precision=PRECISION)
        h = tl.dot(lost, value, acc=h, input_precision=PRECISION)
    return h


@triton.jit
def own_segment(
    lengths_ptr, start_ptr, tokens, chunks, segments,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, W: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """Of a program that walks along chunks: head, group, segment, row and the row's end; places of
    its row's gates, of its segment's state and of that one's numbers; the state it starts from."""
    head = tl.program_id(0) % H
    segment = (tl.program_id(0) // H) % segments
    row = tl.program_id(0) // (H * segments)
    gates = (row * H + head).to(tl.int64) * (chunks * Q)
    own = ((row * segments + segment) * H + head).to(tl.int64)
    tile = tl.arange(0, W)[:, None] * P + tl.arange(0, P)[None, :]
    h = tl.zeros([W, P], dtype=tl.float32)
    if start_ptr is not None:
        h = tl.load(start_ptr + own * (W * P) + tile)
    end = row_end(lengths_ptr, row, tokens)
    return head, head // (H // G), segment, row, end, gates, own, tile, h


@triton.jit
def advance_head(
    h, b, c, x, decay_ptr, weight_ptr, t, Q: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """One chunk of one head: y, and the state behind the chunk."""
    decay = tl.load(decay_ptr + t)
    weight = tl.load(weight_ptr + t)
    total = tl.load(decay_ptr + Q - 1)
    scores = tl.dot(c, tl.trans(b), input_precision=PRECISION)
    inside = (scores * kept_between(decay, weight, t)).to(x.dtype)
    y = tl.dot(c, h.to(x.dtype), input_precision=PRECISION) * shrunk(decay)[:, None]
    y = tl.dot(inside, x, acc=y, input_precision=PRECISION)
    left = shrunk(total - weight)
    return y, add_outer(h * shrunk(total), b, x, left, PRECISION)


@triton.jit(do_not_specialize=["tokens", "chunks", "segments", "span"])
def walk_kernel(
    x_ptr, b_ptr, c_ptr, decay_ptr, weight_ptr, lengths_ptr, start_ptr, y_ptr, final_ptr,
    row_x, tokens, chunks, segments, span,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, W: tl.constexpr, Q: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr, TILED: tl.constexpr,
):  # fmt: skip
    """Outputs of a segment of ``span`` chunks, from start [B, S, H, W, P] (None = zeros).

    The last segment stores the state behind the row, final [B, H, W, P]. TILED: see ``read``; so
    are b, c and y.
    """
    head, group, segment, row, end, gates, _, tile, h = own_segment(
        lengths_ptr, start_ptr, tokens, chunks, segments, H, G, P, W, Q
    )
    t = tl.arange(0, Q)
    stop = tl.minimum((segment + 1) * span, tl.cdiv(end, Q))
    for chunk in tl.range(segment * span, stop, num_stages=STAGES):
        first = row.to(tl.int64) * tokens + chunk * Q
        room = end - chunk * Q
        b = read(b_ptr, first, group * W, t, room, G * W, W, TILED)
        c = read(c_ptr, first, group * W, t, room, G * W, W, TILED)
        x = read(x_ptr, first, head * P, t, room, row_x, P, TILED)
        gate = gates + chunk * Q
        y, h = advance_head(h, b, c, x, decay_ptr + gate, weight_ptr + gate, t, Q, PRECISION)
        write(y_ptr, y, first, head * P, t, room, H * P, P, TILED)
    if segment == segments - 1:
        tl.store(final_ptr + (row * H + head).to(tl.int64) * (W * P) + tile, h)


@triton.jit(do_not_specialize=["tokens", "chunks", "segments", "span"])
def states_kernel(
    key_ptr, rest_ptr, value_ptr, decay_ptr, weight_ptr, lengths_ptr, start_ptr,
    kept_ptr, end_ptr, lost_ptr,
    row_value, tokens, chunks, segments, span,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, W: tl.constexpr, Q: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr, TILED: tl.constexpr, ROUNDED: tl.constexpr,
):  # fmt: skip
    """States along a segment, without outputs, from start [B, S, H, W, P] (None = zeros).

    key, value: B and x (TILED: see ``read``); rest, where not ROUNDED: see
    ``add_outer_unrounded``. kept [B, K + 1, H, W, P] (or None): the state before each chunk that
    has tokens of the row, and behind the last; end [B, S, H, W, P]: behind the segment, lost
    [B, S, H]: its log2 decay.
    """
    head, group, segment, row, end, gates, own, tile, h = own_segment(
        lengths_ptr, start_ptr, tokens, chunks, segments, H, G, P, W, Q
    )
    t = tl.arange(0, Q)
    lost = 0.0
    ended = tl.cdiv(end, Q)
    stop = tl.minimum(segment * span + span, ended)
    if kept_ptr is None:  # nobody asks where the last segment ends
        stop = tl.where(segment == segments - 1, 0, stop)
    for chunk in tl.range(segment * span, stop, num_stages=STAGES):
        if kept_ptr is not None:
            at = kept_ptr + ((row * (chunks + 1) + chunk) * H + head).to(tl.int64) * (W * P) + tile
            tl.store(at, h.to(kept_ptr.dtype.element_ty))
        first = row.to(tl.int64) * tokens + chunk * Q
        room = end - chunk * Q
        key = read(key_ptr, first, group * W, t, room, G * W, W, TILED)
        value = read(value_ptr, first, head * P, t, room, row_value, P, TILED)
        gate = gates + chunk * Q
        total = tl.load(decay_ptr + gate + Q - 1)
        left = shrunk(total - tl.load(weight_ptr + gate + t))
        h *= shrunk(total)
        if ROUNDED:
            h = add_outer(h, key, value, left, PRECISION)
        else:
            rest = None
            if rest_ptr is not None:
                rest = read(rest_ptr, first, group * W, t, room, G * W, W, TILED)
            h = add_outer_unrounded(h, key, rest, value, left, PRECISION)
        lost += total.to(tl.float32)
    if kept_ptr is not None:
        if stop == ended:
            at = kept_ptr + ((row * (chunks + 1) + ended) * H + head).to(tl.int64) * (W * P) + tile
            tl.store(at, h.to(kept_ptr.dtype.element_ty))
    if end_ptr is not None:
        tl.store(end_ptr + own * (W * P) + tile, h)
        tl.store(lost_ptr + own, lost)


@triton.jit(do_not_specialize=["segments"])
def combine_kernel(
    end_ptr, lost_ptr, initial_ptr, start_ptr, segments,
    SIZE: tl.constexpr, H: tl.constexpr, BLOCK: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Where every segment starts, from where each would end alone; part of one head's state."""
    blocks: tl.constexpr = SIZE // BLOCK
    head = (tl.program_id(0) // blocks) % H
    row = tl.program_id(0) // (blocks * H)
    at = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    h = tl.zeros([BLOCK], dtype=tl.float32)
    if initial_ptr is not None:
        h = tl.load(initial_ptr + (row * H + head).to(tl.int64) * SIZE + at)
    for step in range(segments):
        segment = step
        if BACK:
            segment = segments - 1 - step
        own = ((row * segments + segment) * H + head).to(tl.int64)
        tl.store(start_ptr + own * SIZE + at, h)
        h = h * tl.exp2(tl.load(lost_ptr + own)) + tl.load(end_ptr + own * SIZE + at)
