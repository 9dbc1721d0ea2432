"""Launches of the fused kernels: which ones for how many rows, and their scratch memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from kssm.forecast import scaler
from kssm.forecast.fused.kernel_call import KINDS, LARGEST, Call, front
from kssm.forecast.fused.kernel_head import head_kernel, hidden_kernel
from kssm.forecast.fused.kernel_launch_many import step_many
from kssm.forecast.fused.kernel_split import filter_kernel, mlp_kernel, recur_kernel
from kssm.forecast.fused.weights import LEAST, Weights, divisor

_FEW_ROWS, _FEW_ROWS_EXACT = 256, 32
"""Up to so many rows each phase of a layer is one kernel, products included (fp32: exact)."""


@dataclass(frozen=True)
class Plan:
    """How a step of few rows is cut into programs.

    Attributes:
        tile: rows a program.
        channels, hidden: channels and feed-forward units a program.
        head_hidden, horizons: units and horizons a program of the head.
        warps: of every program.
    """

    tile: int
    channels: int
    hidden: int
    head_hidden: int = 32
    horizons: int = 4
    warps: int = 8


def plan_for(rows: int, weights: Weights) -> Plan:
    """The cut that measured best for so many rows (fp32 products take half as much at a time)."""
    sizes = weights.sizes
    narrow = weights.kind == torch.float32
    tile = 1 if rows == 1 or narrow else LEAST
    wide = LEAST if narrow else 32 if tile == 1 else 64
    horizons = 2 if narrow or tile == 1 else 4
    return Plan(
        tile=tile,
        channels=min(sizes.group, wide),
        hidden=divisor(sizes.d_mlp, LEAST if tile == 1 else wide),
        head_hidden=LEAST if narrow else wide,
        horizons=divisor(sizes.horizon, horizons),
        warps=4 if tile == 1 else 8,
    )


class Scratch(NamedTuple):
    """What lies between the kernels, for a number of rows rounded up to whole tiles."""

    x: Tensor
    x_next: Tensor
    after: Tensor
    low: Tensor
    act: Tensor
    gate: Tensor
    recur_parts: Tensor
    mlp_parts: Tensor
    hidden: Tensor

    @classmethod
    def allocate(cls, rows: int, weights: Weights, plan: Plan) -> Scratch:
        """Uninitialised memory on the weights' device."""
        sizes, kind = weights.sizes, weights.kind
        least = max(plan.tile, LEAST)
        rows = triton.cdiv(rows, least) * least

        def room(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=weights.embed.device)

        return cls(
            x=room(rows, sizes.d_model),
            x_next=room(rows, sizes.d_model),
            after=room(rows, len(scaler.FIELDS), dtype=torch.float64),
            low=room(sizes.d_inner // plan.channels, rows, sizes.low),
            act=room(rows, sizes.d_inner, dtype=kind),
            gate=room(rows, sizes.d_inner, dtype=kind),
            recur_parts=room(sizes.d_inner // sizes.group, rows, sizes.d_model),
            mlp_parts=room(sizes.d_mlp // plan.hidden, rows, sizes.d_model),
            hidden=room(rows, sizes.head_hidden, dtype=kind),
        )


def step(
    weights: Weights, values: Tensor, slots: Tensor, dt: Tensor | None, table: Tensor
) -> tuple[Tensor, Tensor]:
    """One step of rows [N]: (tail [N], healthy [N])."""
    call = Call(
        values=values.contiguous(),
        dt=torch.ones_like(values) if dt is None else dt.double().contiguous(),
        slots=slots.contiguous(),
        table=table,
        tail=torch.empty_like(values),
        healthy=torch.empty(len(values), dtype=torch.bool, device=values.device),
    )
    few = _FEW_ROWS_EXACT if weights.kind == torch.float32 else _FEW_ROWS
    if len(values) <= few:
        plan = plan_for(len(values), weights)
        launch(weights, plan, Scratch.allocate(len(values), weights, plan), call, pdl=True)
    else:
        step_many(weights, call)
    return call.tail, call.healthy


def launch(weights: Weights, plan: Plan, scratch: Scratch, call: Call, pdl: bool) -> None:
    """Queue the whole step of ``call`` on the current stream.

    ``pdl``: start every kernel while the one before it ends (programmatic dependent launch).
    """
    front(weights, scratch.x, scratch.after, call, pdl)
    options: dict[str, Any] = {"KIND": KINDS[weights.kind], "PDL": pdl}
    if pdl:
        options["launch_pdl"] = True
    _layers(weights, plan, scratch, call, options)
    _head(weights, plan, scratch, call, options)


def _layers(
    weights: Weights, plan: Plan, scratch: Scratch, call: Call, options: dict[str, Any]
) -> None:
    """Leaves the residual stream in ``x_next`` and the partial sums of ``mlp_parts``."""
    sizes, rows = weights.sizes, len(call.values)
    room = len(scratch.x)
    tiles = triton.cdiv(rows, plan.tile)
    blocks, groups = sizes.d_inner // plan.channels, sizes.d_inner // sizes.group
    hidden = sizes.d_mlp // plan.hidden
    shared = {"DM": sizes.d_model, "BLOCK": plan.tile, "num_warps": plan.warps, **options}
    normed = shared | {"EPS": sizes.eps}
    inner = {"DI": sizes.d_inner, "LOW": sizes.low, "TAPS": sizes.taps}
    for layer in range(sizes.layers):
        first = layer == 0
        filter_kernel[(tiles * blocks,)](
            scratch.x if first else scratch.x_next, scratch.mlp_parts, scratch.x, call.slots,
            call.table, weights.norms[layer, 0], weights.w_in[layer], weights.w_select[layer],
            weights.channels[layer], scratch.act, scratch.gate, scratch.low, rows, room, layer,
            PARTS=0 if first else hidden, BC=plan.channels, **inner, **normed,
        )  # fmt: skip
        recur_kernel[(tiles * groups,)](
            scratch.low, scratch.act, scratch.gate, call.slots, call.dt, call.table,
            weights.w_up[layer], weights.w_out[layer], weights.channels[layer],
            scratch.recur_parts, rows, room, layer,
            RANK=sizes.rank, WIDTH=sizes.group, LOW_PARTS=blocks, EPS=sizes.group_eps, **inner,
            **shared,
        )  # fmt: skip
        mlp_kernel[(tiles * hidden,)](
            scratch.x, scratch.recur_parts, scratch.x_next, weights.norms[layer, 1],
            weights.w_mlp_in[layer], weights.w_mlp_out[layer], scratch.mlp_parts, room,
            HIDDEN=sizes.d_mlp, PARTS=groups, BH=plan.hidden, **normed,
        )  # fmt: skip


def _head(
    weights: Weights, plan: Plan, scratch: Scratch, call: Call, options: dict[str, Any]
) -> None:
    sizes, rows = weights.sizes, len(call.values)
    tiles = triton.cdiv(rows, plan.tile)
    block = min(plan.head_hidden, sizes.head_hidden)
    hidden_kernel[(tiles * (sizes.head_hidden // block),)](
        scratch.x_next, scratch.mlp_parts, weights.final_norm, weights.w_hidden, scratch.hidden,
        len(scratch.x),
        DM=sizes.d_model, HIDDEN=sizes.head_hidden, PARTS=len(scratch.mlp_parts), EPS=sizes.eps,
        BLOCK=plan.tile, BH=block, num_warps=plan.warps, **options,
    )  # fmt: skip
    head_kernel[(tiles * (sizes.horizon // plan.horizons),)](
        scratch.hidden, scratch.after, call.slots, call.table, weights.w_head, weights.head_bias,
        call.healthy, rows,
        HIDDEN=sizes.head_hidden, HORIZON=sizes.horizon, LARGEST=LARGEST[weights.kind],
        BLOCK=plan.tile, AHEAD=plan.horizons, num_warps=plan.warps, **options,
    )  # fmt: skip
