"""What both ways of launching a step share: its tensors, the front kernel, kinds of numbers."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kssm.forecast.distribution import SCORED_HORIZONS
from kssm.forecast.fused.kernel_signal import front_kernel
from kssm.forecast.fused.weights import Weights
from kssm.ops import scaler_scan

KINDS = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
LARGEST = {torch.float16: 65504.0, torch.bfloat16: 1e30, torch.float32: 1e30}


class Call(NamedTuple):
    """One step's tensors on the device: inputs [rows], addresses of the arena, outputs [rows]."""

    values: Tensor
    dt: Tensor
    slots: Tensor
    table: Tensor
    tail: Tensor
    healthy: Tensor

    def part(self, first: int, end: int) -> Call:
        """The same for some of the rows."""
        cut = slice(first, end)
        return Call(
            self.values[cut], self.dt[cut], self.slots[cut], self.table, self.tail[cut],
            self.healthy[cut],
        )  # fmt: skip


def front(
    weights: Weights,
    x: Tensor,
    after: Tensor,
    call: Call,
    pdl: bool,
    lean: tuple[Tensor, Tensor] | tuple[None, None] = (None, None),
) -> None:
    """Scaler, score and embedding: x [room, DM] and the statistics ``after`` [room, 7].

    ``lean``: x as products take it and the sums of its squares, for ``kernel_dense``. It waits for
    all that was queued before; with ``pdl`` the next kernel starts early.
    """
    rows = len(call.values)
    block = 16
    parts = 1 if lean[1] is None else lean[1].shape[1]
    front_kernel[(triton.cdiv(rows, block),)](
        call.values, call.dt, call.slots, call.table, weights.embed, weights.embed_bias,
        x, *lean, after, call.tail, rows,
        DM=weights.sizes.d_model, HORIZON=weights.sizes.horizon, MEMORY=scaler_scan.MEMORY,
        FAST_MEMORY=scaler_scan.FAST_MEMORY, CLIP=scaler_scan.CLIP,
        WARM_UP=scaler_scan.WARM_UP, MAX_ABSOLUTE=scaler_scan.MAX_ABSOLUTE,
        SCORED=SCORED_HORIZONS, PARTS=parts, PDL=pdl, BLOCK=block, num_warps=4,
    )  # fmt: skip
