"""Launches of the fused kernels for many rows: products apart, states streamed past.

Rows go through all layers in chunks, so that what lies between the kernels stays in the L2 cache;
chunks take turns on ``lanes`` streams, so that one's products run while another's states move.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from kssm.forecast import scaler
from kssm.forecast.fused.kernel_call import KINDS, LARGEST, Call, front
from kssm.forecast.fused.kernel_dense import dense_kernel, select_kernel
from kssm.forecast.fused.kernel_head import heads_kernel
from kssm.forecast.fused.kernel_stream import state_kernel, window_kernel
from kssm.forecast.fused.weights import Weights, divisor


@dataclass(frozen=True)
class ManyPlan:
    """How a step of many rows is cut into programs.

    Attributes:
        chunk, lanes: rows that go through all layers together; chunks at a time.
        tile, warps, hidden, next_columns, stages: rows a program of the products, its warps, the
            columns it takes at a time of the feed-forward and the next layer, weights' prefetch.
        select_tile, select_warps: likewise of the selection.
        rows, row_warps: rows a program that streams states, its warps.
        head_tile, horizons, head_warps: rows and horizons a program of the head, its warps.
    """

    chunk: int = 8192
    lanes: int = 1
    tile: int = 128
    warps: int = 8
    hidden: int = 32
    next_columns: int = 64
    stages: int = 2
    select_tile: int = 128
    select_warps: int = 8
    rows: int = 8
    row_warps: int = 4
    head_tile: int = 64
    horizons: int = 32
    head_warps: int = 8

    @property
    def room(self) -> int:
        """Scratch memory has room for whole tiles of every kind."""
        return max(self.tile, self.select_tile, self.rows, self.head_tile, 16)


class Between(NamedTuple):
    """What lies between the kernels of a chunk."""

    x: Tensor
    after: Tensor
    inner: Tensor
    normed: Tensor
    low: Tensor
    selection: Tensor
    hidden: Tensor

    @classmethod
    def allocate(cls, rows: int, weights: Weights, plan: ManyPlan) -> Between:
        """Uninitialised memory on the weights' device."""
        sizes, kind = weights.sizes, weights.kind
        rows = triton.cdiv(rows, plan.room) * plan.room

        def room(columns: int, dtype: torch.dtype = kind) -> Tensor:
            return torch.empty(rows, columns, dtype=dtype, device=weights.embed.device)

        return cls(
            x=room(sizes.d_model, torch.float32),
            after=room(len(scaler.FIELDS), torch.float64),
            inner=room(2 * sizes.d_inner),
            normed=room(sizes.d_model),
            low=room(sizes.low),
            selection=room(sizes.selection),
            hidden=room(sizes.head_hidden),
        )


def launch_many(
    weights: Weights, plan: ManyPlan, between: list[Between], call: Call, pdl: bool
) -> None:
    """Queue the whole step of ``call``; ``between``: one a lane, with room for a chunk."""
    chunks = [
        call.part(first, first + plan.chunk) for first in range(0, len(call.values), plan.chunk)
    ]
    if len(between) == 1 or len(chunks) == 1:
        for chunk in chunks:
            _chunk(weights, plan, between[0], chunk, pdl)
        return
    own = torch.cuda.current_stream()
    lanes = [own, *(torch.cuda.Stream(call.values.device) for _ in between[1:])]
    for lane in lanes[1:]:
        lane.wait_stream(own)
    for number, chunk in enumerate(chunks):
        with torch.cuda.stream(lanes[number % len(lanes)]):
            _chunk(weights, plan, between[number % len(lanes)], chunk, pdl)
    for lane in lanes[1:]:
        own.wait_stream(lane)


def _chunk(weights: Weights, plan: ManyPlan, between: Between, call: Call, pdl: bool) -> None:
    sizes, options = weights.sizes, _options(weights, pdl)
    front(weights, between.x, between.after, call, pdl)
    _dense(weights, plan, between, call, options, None)
    for layer in range(sizes.layers):
        _stream(weights, plan, between, call, layer, pdl)
        _dense(weights, plan, between, call, options, layer)
    rows = len(call.values)
    horizons = divisor(sizes.horizon, plan.horizons)
    heads_kernel[(triton.cdiv(rows, plan.head_tile) * (sizes.horizon // horizons),)](
        between.hidden, between.after, call.slots, call.table, weights.w_head, weights.head_bias,
        call.healthy, rows,
        HIDDEN=sizes.head_hidden, HORIZON=sizes.horizon, LARGEST=LARGEST[weights.kind],
        BLOCK=plan.head_tile, AHEAD=horizons, num_warps=plan.head_warps, **options,
    )  # fmt: skip


def _stream(
    weights: Weights, plan: ManyPlan, between: Between, call: Call, layer: int, pdl: bool
) -> None:
    """Convolution, selection and recurrence of a layer."""
    sizes = weights.sizes
    move_windows(weights, plan, between, call, layer, pdl)
    select_kernel[(triton.cdiv(len(call.values), plan.select_tile),)](
        between.inner, between.low, between.selection, weights.w_select[layer],
        weights.w_up[layer],
        DI=sizes.d_inner, LOW=sizes.low, RANK=sizes.rank, REST=sizes.rest,
        COLUMNS=sizes.selection, WIDTH=sizes.group, BLOCK=plan.select_tile, STAGES=plan.stages,
        SPLITS=1, num_warps=plan.select_warps, **_options(weights, pdl),
    )  # fmt: skip
    move_states(weights, plan, between, call, layer, pdl)


def move_windows(
    weights: Weights, plan: ManyPlan, between: Between, call: Call, layer: int, pdl: bool
) -> None:
    """Queue a layer's convolution, which moves the windows."""
    sizes = weights.sizes
    window_kernel[_tiles(weights, plan, call)](
        between.inner, call.slots, call.table, weights.channels[layer], len(call.values), layer,
        DI=sizes.d_inner, TAPS=sizes.taps, WIDTH=sizes.group, BLOCK=plan.rows,
        num_warps=plan.row_warps, **_options(weights, pdl),
    )  # fmt: skip


def move_states(
    weights: Weights, plan: ManyPlan, between: Between, call: Call, layer: int, pdl: bool
) -> None:
    """Queue a layer's recurrence, which moves the states."""
    sizes = weights.sizes
    state_kernel[_tiles(weights, plan, call)](
        between.inner, between.selection, call.slots, call.dt, call.table,
        weights.channels[layer], len(call.values), layer,
        DI=sizes.d_inner, COLUMNS=sizes.selection, WIDTH=sizes.group, TAPS=sizes.taps,
        EPS=sizes.group_eps, BLOCK=plan.rows, num_warps=plan.row_warps, **_options(weights, pdl),
    )  # fmt: skip


def _tiles(weights: Weights, plan: ManyPlan, call: Call) -> tuple[int]:
    groups = weights.sizes.d_inner // weights.sizes.group
    return (triton.cdiv(len(call.values), plan.rows) * groups,)


def _options(weights: Weights, pdl: bool) -> dict[str, Any]:
    return {"KIND": KINDS[weights.kind], "PDL": pdl, **({"launch_pdl": True} if pdl else {})}


def _dense(
    weights: Weights,
    plan: ManyPlan,
    between: Between,
    call: Call,
    options: dict[str, Any],
    layer: int | None,
) -> None:
    """From a layer's recurrence (None: from the embedding) to the next one, or to the head."""
    sizes = weights.sizes
    current, following = (0, 0) if layer is None else (layer, layer + 1)
    last = following == sizes.layers
    norm = weights.final_norm if last else weights.norms[following, 0]
    matrix = weights.w_hidden if last else weights.w_in[following]
    into = between.hidden if last else between.inner
    columns = into.shape[1]
    block = divisor(columns, plan.next_columns)
    tiles = triton.cdiv(len(call.values), plan.tile)
    dense_kernel[(tiles,)](
        between.x, between.inner, between.normed, weights.norms[current, 1],
        weights.w_out[current], weights.w_mlp_in[current], weights.w_mlp_out[current], norm,
        matrix, into,
        DM=sizes.d_model, DI=sizes.d_inner, HIDDEN=sizes.d_mlp, NEXT=columns, EPS=sizes.eps,
        BLOCK=plan.tile, BC=sizes.group, BH=divisor(sizes.d_mlp, plan.hidden), BN=block,
        STAGES=plan.stages, LAYER=layer is not None, ACTIVE=last, SPLITS=1,
        num_warps=plan.warps, **options,
    )  # fmt: skip
