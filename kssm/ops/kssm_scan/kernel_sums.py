"""Sums over the channels that a warp holds, of several numbers at once (Triton)."""

import triton
import triton.language as tl

from kssm.ops.kssm_scan.kernel_common import INTERPRETED


@triton.jit
def _merge(low, high, lane, distance):
    """Each lane keeps one of two numbers, by the bit ``distance`` of its own, and adds to it the
    same number of the lane on the other side of that bit."""
    return tl.inline_asm_elementwise(
        """{ .reg .pred p; .reg .b32 s, k, r;
        and.b32 r, $3, $4;
        setp.ne.b32 p, r, 0;
        selp.b32 s, $1, $2, p;
        selp.b32 k, $2, $1, p;
        shfl.sync.bfly.b32 r, s, $4, 31, -1;
        add.f32 $0, k, r; }""",
        "=r,r,r,r,r",
        [low, high, lane, distance],
        dtype=tl.float32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _add_across(value, distance):
    """A number plus that of the lane ``distance`` away."""
    return tl.inline_asm_elementwise(
        """{ .reg .b32 r; shfl.sync.bfly.b32 r, $1, $2, 31, -1; add.f32 $0, $1, r; }""",
        "=r,r,r",
        [value, distance],
        dtype=tl.float32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _lane(like):
    """The lane that holds each element."""
    return tl.inline_asm_elementwise(
        "mov.u32 $0, %laneid;", "=r,r", [like], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def _halve(values, lane, distance):
    """Sums of a list across one bit of the lanes: half as many, each known to half of them."""
    half: tl.constexpr = len(values) // 2
    merged = ()
    for i in tl.static_range(half):
        merged = merged + (_merge(values[i], values[half + i], lane, distance),)
    return merged


@triton.jit
def _scatter(values, re_ptr, im_ptr, left, STEP: tl.constexpr, COUNT: tl.constexpr):
    """``sum_channels`` for 4 or 8 tokens: 5 exchanges less for every number but the first few."""
    lane = _lane(values[0])
    values = _halve(values, lane, 16)
    values = _halve(values, lane, 8)
    values = _halve(values, lane, 4)
    if COUNT == 8:
        values = _halve(values, lane, 2)
        total = _add_across(values[0], 1)
        SHARE: tl.constexpr = 2
    else:
        total = _add_across(_add_across(values[0], 2), 1)
        SHARE: tl.constexpr = 4
    number = lane // SHARE
    u = COUNT - 1 - number // 2
    span = tl.arange(0, values[0].shape[0]) // 32
    place = tl.where(number % 2 == 0, re_ptr, im_ptr) + u * STEP + span
    first = lane % SHARE == 0
    if left is not None:
        first = first & (u < left[0])
    tl.store(place, total, mask=first)


@triton.jit
def sum_channels(
    values, re_ptr, im_ptr, left, SPAN: tl.constexpr, STEP: tl.constexpr, COUNT: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """Write the sums of (re, im) over SPAN channels for COUNT tokens, given the last token's first.

    ``left`` None: all are written; else the first left[0]. On a GPU SPAN is what a warp holds, and
    a lane holds neighbours only where GROUP, the channels of a group, can be shared out so: odd
    ones lie in memory such that it holds every 32nd.
    """
    WIDTH: tl.constexpr = values[0].shape[0]
    if INTERPRETED or SPAN < 32 or COUNT < 4 or GROUP % (SPAN // 32) != 0:
        spans = tl.arange(0, WIDTH // SPAN)
        for u in tl.static_range(COUNT):
            re = tl.sum(tl.reshape(values[2 * (COUNT - 1 - u)], [WIDTH // SPAN, SPAN]), 1)
            im = tl.sum(tl.reshape(values[2 * (COUNT - 1 - u) + 1], [WIDTH // SPAN, SPAN]), 1)
            here = spans >= 0
            if left is not None:
                here = left[0] + 0 * spans > u
            tl.store(re_ptr + u * STEP + spans, re, mask=here)
            tl.store(im_ptr + u * STEP + spans, im, mask=here)
    else:
        THREADS: tl.constexpr = WIDTH // SPAN * 32
        folded = ()
        for i in tl.static_range(2 * COUNT):
            if SPAN == 32:
                folded = folded + (values[i],)
            else:
                folded = folded + (tl.sum(tl.reshape(values[i], [THREADS, SPAN // 32]), 1),)
        _scatter(folded, re_ptr, im_ptr, left, STEP, COUNT)
