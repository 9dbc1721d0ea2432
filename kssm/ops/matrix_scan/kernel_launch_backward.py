"""Launching the kernels of the chunks' gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kssm.ops.matrix_scan.kernel_chunks_backward import adjoints_kernel, chunk_backward_kernel
from kssm.ops.matrix_scan.kernel_launch import (
    Chunked,
    aligned,
    combined,
    evenly_spaced,
    output,
    segment_ends,
    tiled,
    tiled_states,
    walk_states,
)
from kssm.ops.matrix_scan.kernel_plan import head_parts


class ChunkGradients(NamedTuple):
    """What the chunk kernels know of the gradients."""

    x: Tensor
    b: Tensor  # [parts, B, T, G, W] fp32, to be added
    c: Tensor
    decay: Tensor  # [B, H, K Q] of each token's own log decay, natural units
    weight: Tensor  # [B, H, K Q] of each token's log gain, negated
    flow: Tensor | None  # [B, K, H, W], see ``adjoints_kernel``
    initial: Tensor  # [B, H, W, P]


def backward(
    scan: Chunked,
    starts: Tensor | None,
    dy: Tensor,
    dfinal: Tensor | None,
    *,
    turning: bool,
    direct: bool,
) -> ChunkGradients:
    """All gradients, from those of y and of the last state (None = zeros).

    ``turning`` asks for the flow, ``direct`` for decays' gradients that strong decays do not blur.
    """
    dy = evenly_spaced(dy)
    dy = dy if aligned(dy) else dy.clone(memory_format=torch.contiguous_format)
    states = _states(scan, starts)
    adjoints = _adjoints(scan, dy, dfinal, states, turning)
    batch, tokens, heads, _ = scan.x.shape
    groups, chunks = scan.b.shape[2], scan.chunks
    parts = head_parts(batch * chunks * groups, heads // groups, scan.x.device)
    fp32 = {"dtype": torch.float32}
    dx = output(scan.x, scan.lengths)
    db, dc = (scan.x.new_empty(parts, *scan.b.shape, **fp32) for _ in range(2))
    ddecay, dweight = (torch.empty_like(scan.decay, **fp32) for _ in range(2))
    chunk_backward_kernel[(batch * chunks * groups * parts,)](
        *(tiled(scan, t) for t in (scan.x, dy, scan.b, scan.c)), *_rests(scan),
        scan.decay, scan.weight, scan.lengths,
        tiled_states(scan, states), tiled_states(scan, adjoints.kept), adjoints.carried,
        tiled(scan, dx), db, dc, ddecay, dweight,
        scan.x.stride(1), dy.stride(1), tokens, chunks,
        PARTS=parts, DIRECT=direct, TILED=scan.tiled, **scan.sizes, **scan.tuning.back.options,
    )  # fmt: skip
    return ChunkGradients(dx, db, dc, ddecay, dweight, adjoints.flow, adjoints.initial)


def _states(scan: Chunked, starts: Tensor | None) -> Tensor:
    """States before each chunk and behind the last [B, K + 1, H, W, P], in x's dtype."""
    sizes = scan.sizes
    shape = (scan.chunks + 1, sizes["H"], sizes["W"], sizes["P"])
    kept = scan.x.new_empty(scan.x.shape[0], *shape)
    walk_states(scan, starts, kept, None, rounded=False)
    return kept


def _rests(scan: Chunked) -> list[Any]:
    """What b and c have lost, as the kernels read it."""
    return [None if t is None else tiled(scan, t) for t in (scan.b_rest, scan.c_rest)]


class _Adjoints(NamedTuple):
    """What the walk back along the chunks leaves."""

    kept: Tensor  # [B, K, H, W, P] behind each chunk, in x's dtype
    carried: Tensor  # [B, K, H]
    flow: Tensor | None  # [B, K, H, W]
    initial: Tensor  # [B, H, W, P]


def _adjoints(
    scan: Chunked, dy: Tensor, dfinal: Tensor | None, states: Tensor, turning: bool
) -> _Adjoints:
    sizes = scan.sizes
    behind = None if dfinal is None else dfinal.unsqueeze(1)
    if scan.plan.segments > 1:
        ends = segment_ends(scan)
        _walk_adjoints(scan, dy, None, None, (None, None, None), ends)
        behind = combined(ends, dfinal, back=True)
    shape = (scan.x.shape[0], scan.chunks, sizes["H"])
    new, fp32 = scan.x.new_empty, {"dtype": torch.float32}
    kept = new(*shape, sizes["W"], sizes["P"])
    carried = new(shape, **fp32)
    flow = new(*shape, sizes["W"], **fp32) if turning else None
    ends = segment_ends(scan)
    _walk_adjoints(scan, dy, behind, states, (kept, carried, flow), ends)
    return _Adjoints(kept, carried, flow, ends[0][:, 0])


def _walk_adjoints(
    scan: Chunked,
    dy: Tensor,
    starts: Tensor | None,
    states: Tensor | None,
    results: tuple[Tensor | None, Tensor | None, Tensor | None],
    ends: tuple[Tensor, Tensor],
) -> None:
    """See ``adjoints_kernel``."""
    segments, span, _ = scan.plan
    grid = (scan.x.shape[0] * segments * scan.x.shape[2],)
    _, rest = _rests(scan)
    adjoints_kernel[grid](
        tiled(scan, scan.c), rest, tiled(scan, dy), scan.decay, scan.lengths,
        starts, states, *results, *ends,
        dy.stride(1), scan.tokens, scan.chunks, segments, span,
        TILED=scan.tiled, ROUNDED=scan.exact, **scan.sizes, **scan.tuning.states.options,
    )  # fmt: skip
