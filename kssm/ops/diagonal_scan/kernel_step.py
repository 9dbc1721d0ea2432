"""Triton kernel of the diagonal step: discretisation, update, read-out, skip and GELU at once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kssm.ops.diagonal_scan.modes import Discretization, Modes
from kssm.ops.launch import blocks_of, on_device

_BLOCK_D = 8
_ROWS = 4
"""Rows of a program where there are many: they share the decays."""


@triton.jit
def _transition(a_re, a_im, step, ZOH: tl.constexpr):
    """(decay, gain) as (re, im, re, im) in fp64; see ``modes``."""
    if ZOH:
        growth, angle = step * a_re, step * a_im
        grown, half = tl.exp(growth), tl.sin(0.5 * angle)
        decay_re, decay_im = grown * tl.cos(angle), grown * tl.sin(angle)
        less_one = (grown - 1.0) * tl.cos(angle) - 2.0 * half * half
        size = a_re * a_re + a_im * a_im
        gain_re = (less_one * a_re + decay_im * a_im) / size
        gain_im = (decay_im * a_re - less_one * a_im) / size
    else:
        re, im = 1.0 - 0.5 * step * a_re, 0.5 * step * a_im
        size = re * re + im * im
        gain_re, gain_im = step * re / size, step * im / size
        decay_re = 1.0 + a_re * gain_re - a_im * gain_im
        decay_im = a_re * gain_im + a_im * gain_re
    return decay_re, decay_im, gain_re, gain_im


@triton.jit(do_not_specialize=["rows", "shared"])
def step_kernel(
    x_ptr, log_step_ptr, log_decay_ptr, frequency_ptr, c_re_ptr, c_im_ptr, skip_ptr,
    states_ptr, slots_ptr, dt_ptr, y_ptr, rows, shared, x_row,
    D: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    ZOH: tl.constexpr,
):  # fmt: skip
    """BLOCK_D channels of ``shared`` rows; a state that would not be finite keeps its old value."""
    blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    d = (tl.program_id(0) % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    in_d = d < D
    mask = in_d[:, None] & (n < N)[None, :]
    tile = d[:, None] * N + n[None, :]
    m = tl.arange(0, 2 * BLOCK_N)  # real and imaginary parts in turn: one wide access
    flat, inside = d[:, None] * (2 * N) + m[None, :], in_d[:, None] & (m < 2 * N)[None, :]
    a_re = -tl.exp(tl.load(log_decay_ptr + tile, mask=mask, other=0.0).to(tl.float64))
    a_im = tl.load(frequency_ptr + tile, mask=mask, other=0.0).to(tl.float64)
    step = tl.exp(tl.load(log_step_ptr + d, mask=in_d, other=0.0).to(tl.float64))[:, None]
    c_re = tl.load(c_re_ptr + tile, mask=mask, other=0.0).to(tl.float32)
    c_im = tl.load(c_im_ptr + tile, mask=mask, other=0.0).to(tl.float32)
    skip = tl.load(skip_ptr + d, mask=in_d, other=0.0).to(tl.float32)
    decay_re, decay_im, gain_re, gain_im = _transition(a_re, a_im, step, ZOH)
    first = (tl.program_id(0) // blocks).to(tl.int64) * shared
    for i in range(tl.minimum(shared, rows - first).to(tl.int32)):
        row = first + i
        if dt_ptr is not None:
            own = step * tl.load(dt_ptr + row).to(tl.float64)
            decay_re, decay_im, gain_re, gain_im = _transition(a_re, a_im, own, ZOH)
        place = states_ptr + 2 * D * N * tl.load(slots_ptr + row).to(tl.int64) + flat
        stored = tl.load(place, mask=inside, other=0.0)
        re, im = tl.split(tl.reshape(stored, [BLOCK_D, BLOCK_N, 2]))
        x = tl.load(x_ptr + row * x_row + d, mask=in_d, other=0.0)
        token = x.to(tl.float64)[:, None]
        new_re = (decay_re * re - decay_im * im + gain_re * token).to(tl.float32)
        new_im = (decay_im * re + decay_re * im + gain_im * token).to(tl.float32)
        finite = (tl.abs(new_re) < float("inf")) & (tl.abs(new_im) < float("inf"))
        kept = tl.join(tl.where(finite, new_re, re), tl.where(finite, new_im, im))
        tl.store(place, tl.reshape(kept, [BLOCK_D, 2 * BLOCK_N]), mask=inside)
        y = 2.0 * tl.sum(new_re * c_re - new_im * c_im, axis=1) + skip * x
        y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
        tl.store(y_ptr + row * D + d, y, mask=in_d)


def diagonal_step_triton_(
    x: Tensor,
    modes: Modes,
    rule: Discretization,
    skip: Tensor,
    states: Tensor,
    slots: Tensor,
    dt: Tensor | None,
) -> Tensor:
    """``diagonal_step_`` in one launch."""
    rows, channels = x.shape
    numbers = modes.c_re.shape[1]
    shared = _ROWS if rows >= 8 * _ROWS else 1
    y = torch.empty(rows, channels, dtype=torch.float32, device=x.device)
    with on_device(x.device):
        step_kernel[(blocks_of(rows, shared) * blocks_of(channels, _BLOCK_D),)](
            x, *modes, skip, states, slots, None if dt is None else dt.contiguous(), y,
            rows, shared, x.stride(0),
            D=channels, N=numbers, BLOCK_D=_BLOCK_D, BLOCK_N=triton.next_power_of_2(numbers),
            ZOH=rule == "zoh", num_warps=2,
        )  # fmt: skip
    return y
