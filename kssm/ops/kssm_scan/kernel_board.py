"""A board on which programs tell their successors what they found (Triton).

Each entry is a channel's word quadruple (product and local state of a tile) and pair (the state
after the tile). Before the launch every word is ``EMPTY``, a NaN that arithmetic never makes, so
each word says by itself whether it has been written: no flags, no fences. A reader asks again
until one of the two is complete. Writers never wait for readers, and a program's number is its
turn (taken from a counter), so whoever is waited for has started.
"""

import triton
import triton.language as tl

from kssm.ops.kssm_scan.kernel_common import INTERPRETED, load_pair, store_pair


@triton.jit
def write_quad(ptr, a, b, c, d, mask):
    """Write four words where ``mask`` is set."""
    if INTERPRETED:
        store_pair(ptr, a, b, mask)
        store_pair(ptr + 2, c, d, mask)
    else:
        tl.inline_asm_elementwise(
            """{ .reg .pred p; setp.ne.b32 p, $6, 0;
            @p st.relaxed.gpu.global.v4.b32 [$1], {$2, $3, $4, $5}; mov.b32 $0, 0; }""",
            "=r,l,r,r,r,r,r",
            [ptr.to(tl.int64), a, b, c, d, mask.to(tl.int32)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def write_pair(ptr, a, b, mask):
    """Write two words where ``mask`` is set."""
    if INTERPRETED:
        store_pair(ptr, a, b, mask)
    else:
        tl.inline_asm_elementwise(
            """{ .reg .pred p; setp.ne.b32 p, $4, 0;
            @p st.relaxed.gpu.global.v2.b32 [$1], {$2, $3}; mov.b32 $0, 0; }""",
            "=r,l,r,r,r",
            [ptr.to(tl.int64), a, b, mask.to(tl.int32)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def wait_for(quads, pairs, mask):
    """(product, state) of the tiles at these addresses, real and imaginary parts.

    Where the state after a tile is there already, that is the answer, with a product of 0.
    Entries that ``mask`` leaves out are 0.
    """
    if INTERPRETED:
        product_re = tl.zeros(mask.shape, tl.float32)
        product_im = tl.zeros(mask.shape, tl.float32)
        re, im = load_pair(pairs, mask)
        re = tl.where(mask, re, 0.0)
        im = tl.where(mask, im, 0.0)
    else:
        product_re, product_im, re, im = tl.inline_asm_elementwise(
            """{ .reg .pred p; .reg .b32 a, b, c, d;
            mov.b32 $0, 0; mov.b32 $1, 0; mov.b32 $2, 0; mov.b32 $3, 0;
            setp.eq.b32 p, $6, 0;
            @p bra DONE;
            AGAIN:
            ld.relaxed.gpu.global.v2.b32 {c, d}, [$5];
            ld.relaxed.gpu.global.v4.b32 {$0, $1, $2, $3}, [$4];
            and.b32 a, c, d;
            setp.eq.b32 p, a, -1;
            setp.eq.or.b32 p, c, -1, p;
            setp.eq.or.b32 p, d, -1, p;
            @p bra QUAD;
            mov.b32 $0, 0; mov.b32 $1, 0; mov.b32 $2, c; mov.b32 $3, d;
            bra DONE;
            QUAD:
            setp.eq.b32 p, $0, -1;
            setp.eq.or.b32 p, $1, -1, p;
            setp.eq.or.b32 p, $2, -1, p;
            setp.eq.or.b32 p, $3, -1, p;
            @p bra AGAIN;
            DONE: }""",
            "=&r,=&r,=&r,=&r,l,l,r",
            [quads.to(tl.int64), pairs.to(tl.int64), mask.to(tl.int32)],
            dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
            is_pure=False,
            pack=1,
        )
    return product_re, product_im, re, im


@triton.jit
def take_turn(counter_ptr):
    """The number of this program in the order of their starts; the counter begins at -1."""
    return tl.atomic_add(counter_ptr, 1, sem="relaxed") + 1


@triton.jit
def compose(a_re, a_im, s_re, s_im, b_re, b_im, t_re, t_im):
    """state -> a state + s, then state -> b state + t, as one map."""
    return (
        a_re * b_re - a_im * b_im,
        a_re * b_im + a_im * b_re,
        b_re * s_re - b_im * s_im + t_re,
        b_re * s_im + b_im * s_re + t_im,
    )


@triton.jit
def compose_both(
    _c_re, _c_im, _u_re, _u_im, a_re, a_im, s_re, s_im,
    d_re, d_im, v_re, v_im, b_re, b_im, t_re, t_im,
):  # fmt: skip
    """For pairs of (map of all but the last element, map of all): the maps of two runs in a row."""
    d_re, d_im, v_re, v_im = compose(a_re, a_im, s_re, s_im, d_re, d_im, v_re, v_im)
    b_re, b_im, t_re, t_im = compose(a_re, a_im, s_re, s_im, b_re, b_im, t_re, t_im)
    return d_re, d_im, v_re, v_im, b_re, b_im, t_re, t_im
