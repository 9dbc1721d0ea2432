"""Triton kernel of the token shift: a program does one row."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kssm.ops.launch import on_device


@triton.jit
def step_kernel(
    x_ptr, weight_ptr, bias_ptr, mix_ptr, shifts_ptr, slots_ptr,
    normed_ptr, delta_ptr, mixed_ptr, rows, x_row, eps,
    D: tl.constexpr, MIXES: tl.constexpr, BOUND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """See the package's docstring; variance in fp32 around the mean."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    mask = d < D
    x = tl.load(x_ptr + row * x_row + d, mask=mask, other=0.0)
    x = tl.minimum(x, BOUND, propagate_nan=tl.PropagateNan.ALL)
    x = tl.maximum(x, -BOUND, propagate_nan=tl.PropagateNan.ALL)
    mean = tl.sum(x, axis=0) / D
    centred = tl.where(mask, x - mean, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / D + eps)
    weight = tl.load(weight_ptr + d, mask=mask, other=0.0)
    normed = centred * scale * weight + tl.load(bias_ptr + d, mask=mask, other=0.0)
    place = shifts_ptr + tl.load(slots_ptr + row).to(tl.int64) * D + d
    delta = tl.load(place, mask=mask, other=0.0) - normed
    sick = tl.max(tl.where(mask & ~(tl.abs(normed) < float("inf")), 1, 0), axis=0)
    tl.store(place, normed, mask=d < tl.where(sick > 0, 0, D))
    tl.store(normed_ptr + row * D + d, normed, mask=mask)
    tl.store(delta_ptr + row * D + d, delta, mask=mask)
    for i in tl.static_range(MIXES):
        mix = tl.load(mix_ptr + i * D + d, mask=mask, other=0.0).to(tl.float32)
        tl.store(mixed_ptr + (i * rows + row) * D + d, normed + delta * mix, mask=mask)


def shift_step_triton_(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    mix: Tensor,
    shifts: Tensor,
    slots: Tensor,
    bound: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """``shift_step_`` in one launch; fp32, entries of x are cut at ``bound``."""
    rows, width = x.shape
    x = x if x.stride(1) == 1 else x.contiguous()
    normed, delta = x.new_empty(2, rows, width)
    mixed = x.new_empty(len(mix), rows, width)
    block = triton.next_power_of_2(width)
    with on_device(x.device):
        step_kernel[(rows,)](
            x, weight, bias, mix.contiguous(), shifts, slots, normed, delta, mixed,
            rows, x.stride(0), eps,
            D=width, MIXES=len(mix), BOUND=bound, BLOCK=block,
            num_warps=max(1, min(8, block // 128)),
        )  # fmt: skip
    return normed, delta, mixed
