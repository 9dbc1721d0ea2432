"""Launches of the fused kernels for many rows: products apart, states streamed past.

Rows go through all layers in chunks, which take turns on ``lanes`` streams, so that one's products
run while another's states move.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from kssm.forecast.fused.kernel_call import KINDS, LARGEST, Call, front
from kssm.forecast.fused.kernel_dense import (
    dense_kernel,
    gated_kernel,
    normed_kernel,
    residual_kernel,
    select_kernel,
)
from kssm.forecast.fused.kernel_head import quantiles_kernel, raw_kernel
from kssm.forecast.fused.kernel_plan_many import OUTPUTS, Between, ManyPlan, plan_many
from kssm.forecast.fused.kernel_stream import state_kernel, window_kernel
from kssm.forecast.fused.weights import Weights, divisor


def step_many(weights: Weights, call: Call) -> None:
    """Queue the whole step of ``call`` on the current stream."""
    rows = len(call.values)
    plan = plan_many(rows, weights)
    lanes = min(plan.lanes, triton.cdiv(rows, plan.chunk))
    room = min(rows, plan.chunk)
    between = [Between.allocate(room, weights, plan) for _ in range(lanes)]
    launch_many(weights, plan, between, call, pdl=True)


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
    whole = plan.dense_tile > 0
    lean = (None, None) if whole else (between.lean, between.squares)
    front(weights, between.x, between.after, call, pdl, lean)
    products = _dense if whole else _products
    products(weights, plan, between, call, -1, pdl)
    for layer in range(weights.sizes.layers):
        _stream(weights, plan, between, call, layer, pdl)
        products(weights, plan, between, call, layer, pdl)
    _head(weights, plan, between, call, pdl)


def _products(
    weights: Weights, plan: ManyPlan, between: Between, call: Call, layer: int, pdl: bool
) -> None:
    """From the recurrence of ``layer``, -1 for the embedding, to the next one or to the head."""
    if layer >= 0:
        _add(weights, plan, between, call, pdl, between.inner, weights.w_out[layer])
        _gated(weights, plan, between, call, layer, pdl)
        _add(weights, plan, between, call, pdl, between.mixed, weights.w_mlp_out[layer])
    matrix, out = _following(weights, between, layer)
    _normed(weights, plan, between, call, pdl, matrix, out)


def _dense(
    weights: Weights, plan: ManyPlan, between: Between, call: Call, layer: int, pdl: bool
) -> None:
    """As ``_products`` in one kernel."""
    sizes, own = weights.sizes, max(layer, 0)
    matrix, out = _following(weights, between, layer)
    inner, hidden, columns = plan.dense_columns
    dense_kernel[(triton.cdiv(len(call.values), plan.dense_tile),)](
        between.x, between.inner, weights.w_out[own], weights.normed_mlp_in[own],
        weights.w_mlp_out[own], matrix, out,
        DM=sizes.d_model, DI=sizes.d_inner, HIDDEN=sizes.d_mlp, NEXT=out.shape[1],
        ACTIVE=_active(weights, between, out), LAYER=layer >= 0, EPS=sizes.eps,
        BLOCK=plan.dense_tile, BC=divisor(sizes.d_inner, inner), BH=divisor(sizes.d_mlp, hidden),
        BN=divisor(out.shape[1], columns), STAGES=plan.dense_stages, num_warps=plan.dense_warps,
        **_options(weights, pdl),
    )  # fmt: skip


def _following(weights: Weights, between: Between, layer: int) -> tuple[Tensor, Tensor]:
    """The matrix behind ``layer``'s norm and where its product goes."""
    if layer + 1 == weights.sizes.layers:
        return weights.normed_hidden, between.hidden
    return weights.normed_in[layer + 1], between.inner


def _active(weights: Weights, between: Between, out: Tensor) -> int:
    """The first column that goes through SiLU: gates do, and the head's hidden units."""
    return 0 if out is between.hidden else weights.sizes.d_inner


def _normed(
    weights: Weights,
    plan: ManyPlan,
    between: Between,
    call: Call,
    pdl: bool,
    matrix: Tensor,
    out: Tensor,
) -> None:
    """The product of the residual stream's norm with ``matrix``."""
    sizes, columns = weights.sizes, out.shape[1]
    block = divisor(columns, plan.columns)
    normed_kernel[(triton.cdiv(len(call.values), plan.tile) * (columns // block),)](
        between.lean, between.squares, matrix, out,
        DM=sizes.d_model, N=columns, EPS=sizes.eps, PARTS=between.squares.shape[1],
        BLOCK=plan.tile, BN=block, BK=divisor(sizes.d_model, plan.deep), STAGES=plan.stages,
        ACTIVE=_active(weights, between, out), num_warps=plan.warps, **_options(weights, pdl),
    )  # fmt: skip


def _gated(
    weights: Weights, plan: ManyPlan, between: Between, call: Call, layer: int, pdl: bool
) -> None:
    """The feed-forward layer's hidden units."""
    sizes = weights.sizes
    block = divisor(sizes.d_mlp, plan.columns // 2)
    gated_kernel[(triton.cdiv(len(call.values), plan.tile) * (sizes.d_mlp // block),)](
        between.lean, between.squares, weights.normed_mlp_in[layer], between.mixed,
        DM=sizes.d_model, N=sizes.d_mlp, EPS=sizes.eps, PARTS=between.squares.shape[1],
        BLOCK=plan.tile, BN=block, BK=divisor(sizes.d_model, plan.deep), STAGES=plan.stages,
        num_warps=plan.warps, **_options(weights, pdl),
    )  # fmt: skip


def _add(
    weights: Weights,
    plan: ManyPlan,
    between: Between,
    call: Call,
    pdl: bool,
    inputs: Tensor,
    matrix: Tensor,
) -> None:
    """The product of ``inputs`` with ``matrix``, added to the residual stream."""
    sizes, deep = weights.sizes, matrix.shape[1]
    block = divisor(sizes.d_model, plan.sum_columns)
    tiles = triton.cdiv(len(call.values), plan.sum_tile)
    residual_kernel[(tiles * (sizes.d_model // block),)](
        inputs, matrix, between.x, between.lean, between.squares,
        K=deep, STRIDE=inputs.shape[1], DM=sizes.d_model, BLOCK=plan.sum_tile, BN=block,
        BK=divisor(deep, plan.deep), STAGES=plan.stages, num_warps=plan.sum_warps,
        **_options(weights, pdl),
    )  # fmt: skip


def _head(weights: Weights, plan: ManyPlan, between: Between, call: Call, pdl: bool) -> None:
    sizes, rows = weights.sizes, len(call.values)
    columns = OUTPUTS * sizes.horizon
    block = divisor(columns, plan.columns)
    raw_kernel[(triton.cdiv(rows, plan.tile) * (columns // block),)](
        between.hidden, weights.w_head, weights.head_bias, between.raw,
        HIDDEN=sizes.head_hidden, HORIZON=sizes.horizon, BLOCK=plan.tile, BN=block,
        BK=divisor(sizes.head_hidden, plan.deep), STAGES=plan.stages, num_warps=plan.warps,
        **_options(weights, pdl),
    )  # fmt: skip
    options = _options(weights, pdl)
    del options["KIND"]
    ahead = divisor(sizes.horizon, plan.horizons)
    quantiles_kernel[(triton.cdiv(rows, plan.head_rows) * (sizes.horizon // ahead),)](
        between.hidden, between.raw, between.after, call.slots, call.table, call.healthy, rows,
        HIDDEN=sizes.head_hidden, HORIZON=sizes.horizon, LARGEST=LARGEST[weights.kind],
        BLOCK=plan.head_rows, AHEAD=ahead, num_warps=4, **options,
    )  # fmt: skip


def _stream(
    weights: Weights, plan: ManyPlan, between: Between, call: Call, layer: int, pdl: bool
) -> None:
    """Convolution, selection and recurrence of a layer."""
    sizes = weights.sizes
    move_windows(weights, plan, between, call, layer, pdl)
    select_kernel[(triton.cdiv(len(call.values), plan.select_tile) * plan.splits,)](
        between.inner, between.low, between.selection, weights.w_select[layer],
        weights.w_up[layer],
        DI=sizes.d_inner, LOW=sizes.low, RANK=sizes.rank, REST=sizes.rest,
        COLUMNS=sizes.selection, WIDTH=sizes.group, BLOCK=plan.select_tile, STAGES=plan.stages,
        SPLITS=plan.splits, num_warps=plan.select_warps, **_options(weights, pdl),
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
