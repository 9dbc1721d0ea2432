"""How a step of many rows is cut into programs, and the memory between its kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from kssm.forecast import scaler
from kssm.forecast.fused.weights import Weights, divisor

OUTPUTS = 10
"""Of the head, for each horizon."""

_SOME_ROWS = 4096
"""Up to so many rows small programs of one product each keep the whole GPU busy."""

_TWO_LANES = 32768
"""From so many rows on two halves take turns: one's products run beside the other's states."""

_MOST_AT_ONCE = 65536


@dataclass(frozen=True)
class ManyPlan:
    """How a step of many rows is cut into programs.

    Attributes:
        chunk, lanes: rows that go through all layers together; chunks at a time.
        tile, columns, warps: rows and columns a program of most products, its warps.
        sum_tile, sum_columns, sum_warps: likewise of those that add to the residual stream.
        deep, stages: numbers of a row that a product takes at a time; prefetch of the next ones.
        select_tile, select_warps, splits: rows a program of the selection, its warps, and programs
            that share its columns (a divisor of three times the groups).
        dense_tile, dense_warps, dense_stages: rows a program of all products between two
            recurrences, its warps and prefetch; 0 rows for a kernel each.
        dense_columns: columns of the three that it computes at a time.
        rows, row_warps: rows a program that streams states, its warps.
        head_rows, horizons: rows and horizons a program that writes forecasts.
    """

    chunk: int = 65536
    lanes: int = 1
    tile: int = 128
    columns: int = 128
    warps: int = 8
    sum_tile: int = 128
    sum_columns: int = 128
    sum_warps: int = 8
    deep: int = 64
    stages: int = 3
    select_tile: int = 128
    select_warps: int = 8
    splits: int = 1
    dense_tile: int = 0
    dense_warps: int = 4
    dense_stages: int = 4
    dense_columns: tuple[int, int, int] = (32, 16, 32)
    rows: int = 8
    row_warps: int = 4
    head_rows: int = 4
    horizons: int = 64

    @property
    def room(self) -> int:
        """Scratch memory has room for whole tiles of every kind."""
        tiles = (self.tile, self.sum_tile, self.select_tile, self.dense_tile)
        return max(*tiles, self.rows, self.head_rows, 16)


class Between(NamedTuple):
    """What lies between the kernels of a chunk."""

    x: Tensor
    lean: Tensor
    squares: Tensor
    after: Tensor
    inner: Tensor
    low: Tensor
    selection: Tensor
    mixed: Tensor
    hidden: Tensor
    raw: Tensor

    @classmethod
    def allocate(cls, rows: int, weights: Weights, plan: ManyPlan) -> Between:
        """Uninitialised memory on the weights' device."""
        sizes, kind = weights.sizes, weights.kind
        rows = triton.cdiv(rows, plan.room) * plan.room
        parts = sizes.d_model // divisor(sizes.d_model, plan.sum_columns)

        def room(columns: int, dtype: torch.dtype = kind) -> Tensor:
            return torch.empty(rows, columns, dtype=dtype, device=weights.embed.device)

        return cls(
            x=room(sizes.d_model, torch.float32),
            lean=room(sizes.d_model),
            squares=room(parts, torch.float32),
            after=room(len(scaler.FIELDS), torch.float64),
            inner=room(2 * sizes.d_inner),
            low=room(plan.splits * sizes.low),
            selection=room(sizes.selection),
            mixed=room(sizes.d_mlp),
            hidden=room(sizes.head_hidden),
            raw=room(OUTPUTS * sizes.horizon, torch.float32),
        )


def plan_many(rows: int, weights: Weights) -> ManyPlan:
    """The cut that measured best for so many rows (fp32 products take half as much at a time)."""
    if weights.kind == torch.float32:
        return ManyPlan(
            tile=64, columns=64, warps=4, sum_tile=64, sum_columns=64, sum_warps=4, deep=32,
            stages=2, select_tile=32, select_warps=4,
        )  # fmt: skip
    if rows <= _SOME_ROWS:
        return ManyPlan(
            tile=64, columns=64, warps=4, sum_tile=64, sum_columns=64, sum_warps=4,
            select_tile=64, select_warps=4, splits=3,
        )  # fmt: skip
    if rows < _TWO_LANES:
        return ManyPlan(
            tile=64, columns=64, warps=4, select_tile=64, select_warps=4, splits=3, dense_tile=64
        )
    chunk = min(triton.cdiv(rows, 256) * 128, _MOST_AT_ONCE)
    return ManyPlan(chunk=chunk, lanes=2, dense_tile=64)
