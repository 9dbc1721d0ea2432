"""Triton kernel of the step: one token for each of many rows, state changed in place."""

import triton
import triton.language as tl

from kssm.ops.matrix_scan.kernel_gates import LIMIT, softplus, speed


@triton.jit
def step_kernel(
    x_ptr, b_ptr, c_ptr, alpha_ptr, dt_ptr, omega_ptr, token_dt_ptr,
    alpha_bias_ptr, dt_bias_ptr, rate_ptr, state_ptr, slots_ptr, y_ptr,
    row_x, row_b, row_c, row_alpha, row_dt, row_omega,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """BLOCK_P values of one head of one row. Slot -1: y = 0 and nothing is written."""
    blocks: tl.constexpr = P // BLOCK_P
    p = (tl.program_id(0) % blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    head = (tl.program_id(0) // blocks) % H
    row = (tl.program_id(0) // (blocks * H)).to(tl.int64)
    group = head // (H // G)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    n = tl.arange(0, N)
    factor = 1.0
    if token_dt_ptr is not None:
        factor = tl.load(token_dt_ptr + row).to(tl.float32)
    moving = tl.where((slot >= 0) & (factor != 0.0), 1, 0)
    alpha = tl.load(alpha_ptr + row * row_alpha + head).to(tl.float32)
    dt = tl.load(dt_ptr + row * row_dt + head).to(tl.float32)
    step = factor * softplus(dt + tl.load(dt_bias_ptr + head))
    q = tl.minimum(0.5 * step * softplus(alpha + tl.load(alpha_bias_ptr + head)), LIMIT)
    root = tl.sqrt(1.0 + q * q)
    # (sqrt(1 + q²) - q)², written so that nothing cancels
    decay = 1.0 / ((root + q) * (root + q))
    gain = step / (1.0 + q / root)
    omega = tl.load(omega_ptr + row * row_omega + group * N + n).to(tl.float32)
    v = speed(tl.load(rate_ptr + group * N + n), omega, factor)
    shrink = 1.0 / (1.0 + v * v)
    cos, sin = (1.0 - v * v) * shrink, 2.0 * v * shrink
    place = b_ptr + row * row_b + group * (2 * N) + n
    re, im = tl.load(place).to(tl.float32), tl.load(place + N).to(tl.float32)
    b_re, b_im = (re + v * im) * shrink, (im - v * re) * shrink
    place = c_ptr + row * row_c + group * (2 * N) + n
    c_re, c_im = tl.load(place).to(tl.float32), tl.load(place + N).to(tl.float32)

    x = tl.load(x_ptr + row * row_x + head * P + p).to(tl.float32) * gain
    x = tl.where(moving > 0, x, 0.0)
    both = tl.arange(0, 2 * N)
    at = state_ptr + (tl.maximum(slot, 0) * H + head) * (P * 2 * N)
    at = at + p[:, None] * (2 * N) + both[None, :]
    old = tl.load(at, mask=(p < tl.where(slot >= 0, P, 0))[:, None], other=0.0)
    old_re, old_im = tl.split(tl.reshape(old, [BLOCK_P, N, 2]))
    new_re = decay * (cos[None, :] * old_re + sin[None, :] * old_im) + x[:, None] * b_re[None, :]
    new_im = decay * (cos[None, :] * old_im - sin[None, :] * old_re) + x[:, None] * b_im[None, :]
    new_re = tl.where(moving > 0, new_re, old_re)
    new_im = tl.where(moving > 0, new_im, old_im)
    y = tl.sum(c_re[None, :] * new_re + c_im[None, :] * new_im, axis=1)
    y = tl.where(slot >= 0, y, 0.0)
    tl.store(y_ptr + (row * H + head) * P + p, y.to(y_ptr.dtype.element_ty))
    healthy = tl.sum(tl.abs(new_re) + tl.abs(new_im), axis=1) < float("inf")
    new = tl.reshape(tl.join(new_re, new_im), [BLOCK_P, 2 * N])
    tl.store(at, new, mask=(healthy & (p < tl.where(moving > 0, P, 0)))[:, None])
