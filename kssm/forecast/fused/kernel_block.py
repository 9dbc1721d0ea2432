"""Triton building blocks of a KSSM layer for a tile of rows: what both kinds of launch share.

A layer is three phases, each ending where every channel of a row is needed:

    filter   norm, input projection, convolution with its window, SiLU, selection
    recur    gates from the selection, recurrence, read-out, group norm, gate, output projection
    mlp      norm, up projection, SwiGLU, down projection

The formulas are those of ``kssm/models/kssm.py`` and ``kssm/ops/kssm_scan``. In the per-channel
table ``channel_ptr`` [TAPS + 9, DI] lie the taps and bias of the convolution, alpha_bias, the
shift and scale of omega, dt_bias, c_re, c_im, skip and the output norm's weight.
"""

import triton
import triton.language as tl

from kssm.forecast.fused.kernel_common import is_finite, product, silu, vector
from kssm.ops.kssm_scan.kernel_common import advance, token_gates


@triton.jit
def tile_of(pointer, first, COUNT: tl.constexpr, STRIDE: tl.constexpr, WIDTH: tl.constexpr):
    """Rows first ... first + COUNT of a matrix with rows of STRIDE numbers, WIDTH of each."""
    rows = first + tl.arange(0, COUNT)
    return tl.load(pointer + rows[:, None] * STRIDE + tl.arange(0, WIDTH)[None, :])


@triton.jit
def vectors(
    pointer, COUNT: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    """COUNT lines of a per-channel table as a tuple of ``vector``s."""
    lines = ()
    for i in tl.static_range(COUNT):
        lines = lines + (vector(pointer + i * STRIDE, BLOCK, SIZE),)
    return lines


@triton.jit
def window_of(window, channels, live, DI: tl.constexpr, TAPS: tl.constexpr):
    """A row's last TAPS - 1 tokens as a tuple of [M, BC], oldest first; ``window`` [M] pointers."""
    place = window[:, None] + channels[None, :]
    tokens = ()
    for tap in tl.static_range(TAPS - 1):
        tokens = tokens + (tl.load(place + tap * DI, mask=live[:, None], other=0.0),)
    return tokens


@triton.jit
def convolve(token, past, window, channels, taps, live, DI: tl.constexpr, TAPS: tl.constexpr):
    """The filtered token [M, BC]; the window (pointers [M] to each row's) moves on to include it.

    ``past`` is from ``window_of``; ``taps``: TAPS weights and the bias. A token that is not finite
    is not remembered.
    """
    kept = live[:, None] & is_finite(token)
    total = token * taps[TAPS - 1] + taps[TAPS]
    place = window[:, None] + channels[None, :]
    for tap in tl.static_range(TAPS - 1):
        total += past[tap] * taps[tap]
        if tap > 0:
            tl.store(place + (tap - 1) * DI, past[tap], mask=kept)
    tl.store(place + (TAPS - 2) * DI, token, mask=kept)
    return total


@triton.jit
def filter_block(
    normed, w_token, w_gate, past, window, channels, taps, live, act, gate,
    DI: tl.constexpr, TAPS: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Channels of the first phase: stores the active token and the open gate, returns the former.

    ``normed`` [M, DM] in KIND; ``w_token`` and ``w_gate`` [BC, DM]; ``act`` and ``gate`` [M, BC]
    pointers.
    """
    token = product(normed, w_token, KIND)
    tl.store(gate, silu(product(normed, w_gate, KIND)).to(KIND))
    active = silu(convolve(token, past, window, channels, taps, live, DI, TAPS)).to(KIND)
    tl.store(act, active)
    return active


@triton.jit
def selected(low, ups, KIND: tl.constexpr):
    """alpha, omega and dt [M, WIDTH] from selections [M, RANK] and their maps [WIDTH, RANK]."""
    return (
        product(low[0], ups[0], KIND),
        product(low[1], ups[1], KIND),
        product(low[2], ups[2], KIND),
    )


@triton.jit
def recur_block(
    selection, constants, b_re, b_im, stored, place, factor, live, active, gate,
    WIDTH: tl.constexpr, EPS: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """A group's gated output [M, WIDTH]; the states ``stored`` at ``place`` [M, 2 WIDTH] advance.

    ``selection``: alpha, omega, dt [M, WIDTH]; ``constants``: the table's last eight lines;
    ``b_*`` [M, 1], ``factor`` [M], ``active`` and ``gate`` [M, WIDTH]. A pair whose new value is
    not finite is not written.
    """
    EXACT: tl.constexpr = tl.float32 == KIND
    alpha_bias, shift, scale, dt_bias, c_re, c_im, skip, norm = constants
    mask = live[:, None]
    alpha, omega, step = selection
    h_re, h_im = tl.split(tl.reshape(stored, [stored.shape[0], WIDTH, 2]))
    biases = (alpha_bias, shift, scale, dt_bias)
    gates = token_gates(alpha, omega, step, factor[:, None], biases, EXACT)
    tau, p, q, s, i2 = gates[5:]
    new_re, new_im = advance(h_re, h_im, tau * active, b_re, b_im, p, q, s, i2)
    finite = is_finite(new_re) & is_finite(new_im)
    kept = tl.join(tl.where(finite, new_re, h_re), tl.where(finite, new_im, h_im))
    tl.store(place, tl.reshape(kept, [stored.shape[0], 2 * WIDTH]), mask=mask)
    y = c_re * new_re + c_im * new_im
    unit = tl.rsqrt(tl.sum(y * y, axis=1) / WIDTH + EPS)
    return (y * unit[:, None] * norm + skip * active) * gate


@triton.jit
def up_tiles(pointer, DI: tl.constexpr, RANK: tl.constexpr, WIDTH: tl.constexpr):
    """The three maps [WIDTH, RANK] of a group's channels."""
    return (
        tile_of(pointer, 0, WIDTH, RANK, RANK),
        tile_of(pointer + DI * RANK, 0, WIDTH, RANK, RANK),
        tile_of(pointer + 2 * DI * RANK, 0, WIDTH, RANK, RANK),
    )


@triton.jit
def mlp_block(normed, w_gate, w_value, KIND: tl.constexpr):
    """Hidden units [M, BH] of the feed-forward layer from ``normed`` [M, DM]."""
    return silu(product(normed, w_gate, KIND)) * product(normed, w_value, KIND)
