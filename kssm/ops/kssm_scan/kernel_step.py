"""Triton kernel of the step: one token for each of many rows, state changed in place."""

import triton
import triton.language as tl

from kssm.ops.kssm_scan.kernel_common import advance, token_gates


@triton.jit
def step_kernel(
    alpha_ptr, omega_ptr, dt_ptr, x_ptr, b_re_ptr, b_im_ptr, token_dt_ptr,
    alpha_bias_ptr, omega_bias_ptr, omega_scale_ptr, dt_bias_ptr, c_re_ptr, c_im_ptr,
    state_ptr, slots_ptr, y_ptr,
    ROWS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """One row, BLOCK_D channels. Slot -1: y = 0 and nothing is written.

    State is read and written as one run of 2 BLOCK_D numbers, so that accesses stay wide.
    """
    BLOCKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    row = (tl.program_id(0) // BLOCKS).to(tl.int64)
    channels = (tl.program_id(0) % BLOCKS) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = channels < D
    slot = tl.load(slots_ptr + row).to(tl.int64)
    live = channels < tl.where(slot >= 0, D, 0)
    alpha = tl.load(alpha_ptr + row * ROWS[0] + channels, mask=live, other=0.0).to(tl.float32)
    omega = tl.load(omega_ptr + row * ROWS[1] + channels, mask=live, other=0.0).to(tl.float32)
    dt = tl.load(dt_ptr + row * ROWS[2] + channels, mask=live, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + row * ROWS[3] + channels, mask=live, other=0.0).to(tl.float32)
    group = channels // WIDTH
    b_re = tl.load(b_re_ptr + row * ROWS[4] + group, mask=live, other=0.0).to(tl.float32)
    b_im = tl.load(b_im_ptr + row * ROWS[5] + group, mask=live, other=0.0).to(tl.float32)
    place = state_ptr + tl.maximum(slot, 0) * (2 * D)
    number = (tl.program_id(0) % BLOCKS) * (2 * BLOCK_D) + tl.arange(0, 2 * BLOCK_D)
    stored = tl.load(place + number, mask=number < tl.where(slot >= 0, 2 * D, 0), other=0.0)
    h_re, h_im = tl.split(tl.reshape(stored, [BLOCK_D, 2]))
    scale = tl.load(omega_scale_ptr + channels, mask=inside, other=0.0)
    shift = tl.load(omega_bias_ptr + channels, mask=inside, other=0.0) * scale
    alpha_bias = tl.load(alpha_bias_ptr + channels, mask=inside, other=0.0)
    channel = (alpha_bias, shift, scale, tl.load(dt_bias_ptr + channels, mask=inside, other=0.0))
    factor = 1.0
    written = tl.where(slot >= 0, 2 * D, 0)
    if token_dt_ptr is not None:
        factor = tl.load(token_dt_ptr + row).to(tl.float32)
        written = tl.where(factor == 0.0, 0, written)
    gates = token_gates(alpha, omega, dt, factor, channel, EXACT)
    tau, p, q, s, i2 = gates[5:]
    new_re, new_im = advance(h_re, h_im, tau * x, b_re, b_im, p, q, s, i2)
    new_re = tl.where(written > 0, new_re, h_re)
    new_im = tl.where(written > 0, new_im, h_im)
    finite = (tl.abs(new_re) < float("inf")) & (tl.abs(new_im) < float("inf"))
    kept = tl.join(tl.where(finite, new_re, h_re), tl.where(finite, new_im, h_im))
    kept = tl.reshape(kept, [2 * BLOCK_D])
    tl.store(place + number, kept, mask=number < written)
    c_re = tl.load(c_re_ptr + channels, mask=inside, other=0.0)
    c_im = tl.load(c_im_ptr + channels, mask=inside, other=0.0)
    y = tl.where(live, c_re * new_re + c_im * new_im, 0.0)
    tl.store(y_ptr + row * D + channels, y, mask=inside)
