"""Triton kernels around the steps of thinned copies: keeping samples, and taking a run of them.

What ``kssm/forecast/resolutions.py`` does in torch, as one kernel each.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kssm.forecast.fused.kernel_common import slots_of
from kssm.forecast.thinning import ABSENT
from kssm.ops.scaler_scan import MAX_ABSOLUTE

_BLOCK = 32
"""Rows a program."""


@triton.jit(do_not_specialize=["rows"])
def keep_kernel(
    values_ptr, dt_ptr, slots_ptr, healthy_ptr, clock_ptr, block_ptr, rows,
    SIZE: tl.constexpr, LARGEST: tl.constexpr, MISSING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Put the samples of healthy rows into their blocks [slots, 2, SIZE]; their clocks go on."""
    tile = tl.program_id(0)
    slot, live = slots_of(slots_ptr, tile, rows, BLOCK)
    row = tile * BLOCK + tl.arange(0, BLOCK)
    kept = live & tl.load(healthy_ptr + row, mask=row < rows, other=False)
    clock = tl.load(clock_ptr + slot, mask=kept, other=0.0)
    value = tl.load(values_ptr + row, mask=kept, other=0.0)
    value = tl.where(tl.abs(value) <= LARGEST, value, MISSING)
    place = block_ptr + slot * (2 * SIZE) + clock.to(tl.int64) % SIZE
    tl.store(place, value, mask=kept)
    tl.store(place + SIZE, tl.load(dt_ptr + row, mask=kept, other=1.0), mask=kept)
    tl.store(clock_ptr + slot, clock + 1.0, mask=kept)


@triton.jit(do_not_specialize=["rows"])
def run_kernel(
    slots_ptr, due_ptr, clock_ptr, block_ptr, values_ptr, dt_ptr, own_ptr, rows,
    SIZE: tl.constexpr, FACTOR: tl.constexpr, LARGEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The last visible sample and the mean step of the run of FACTOR samples that has just ended.

    ``own_ptr`` [rows]: the row's slot, -1 where its clock is not the one that is due.
    """
    tile = tl.program_id(0)
    slot, live = slots_of(slots_ptr, tile, rows, BLOCK)
    row = tile * BLOCK + tl.arange(0, BLOCK)
    due = tl.load(due_ptr + row, mask=row < rows, other=0.0)
    live &= tl.load(clock_ptr + slot, mask=live, other=-1.0) == due
    last = tl.maximum(due.to(tl.int64) - 1, 0) % SIZE
    place = block_ptr + slot * (2 * SIZE) + last // FACTOR * FACTOR
    value = tl.full([BLOCK], float("nan"), tl.float64)
    step = tl.zeros([BLOCK], tl.float64)
    for k in range(FACTOR):
        sample = tl.load(place + k, mask=live, other=0.0)
        value = tl.where(tl.abs(sample) <= LARGEST, sample, value)
        step += tl.load(place + SIZE + k, mask=live, other=1.0)
    tl.store(values_ptr + row, value, mask=row < rows)
    tl.store(dt_ptr + row, step / FACTOR, mask=row < rows)
    tl.store(own_ptr + row, tl.where(live, slot, -1), mask=row < rows)


def keep(
    values: Tensor, dt: Tensor | None, slots: Tensor, healthy: Tensor, clock: Tensor, block: Tensor
) -> None:
    """Samples [N] into blocks [slots, 2, M], where rows are healthy; clocks [slots, 1] go on."""
    rows = len(slots)
    spaced = torch.ones_like(values) if dt is None else dt.double()
    keep_kernel[(triton.cdiv(rows, _BLOCK),)](
        values.contiguous(), spaced.contiguous(), slots.contiguous(), healthy, clock, block, rows,
        SIZE=block.shape[2], LARGEST=MAX_ABSOLUTE, MISSING=ABSENT, BLOCK=_BLOCK, num_warps=1,
    )  # fmt: skip


def ended_run(
    slots: Tensor, due: Tensor, factor: int, clock: Tensor, block: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(samples, steps, slots) [N] of the runs of ``factor`` that end at clocks ``due`` [N]."""
    rows = len(slots)
    values, steps, own = torch.empty_like(due), torch.empty_like(due), torch.empty_like(slots)
    run_kernel[(triton.cdiv(rows, _BLOCK),)](
        slots.contiguous(), due.contiguous(), clock, block, values, steps, own, rows,
        SIZE=block.shape[2], FACTOR=factor, LARGEST=MAX_ABSOLUTE, BLOCK=_BLOCK, num_warps=1,
    )  # fmt: skip
    return values, steps, own
