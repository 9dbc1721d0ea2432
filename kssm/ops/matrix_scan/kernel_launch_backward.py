"""Launching the Triton kernels of the gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from kssm.ops.matrix_scan.kernel_chunks_backward import adjoints_kernel, chunk_backward_kernel
from kssm.ops.matrix_scan.kernel_gates_backward import (
    gates_backward_kernel,
    rotate_backward_kernel,
)
from kssm.ops.matrix_scan.kernel_launch import (
    Scan,
    Turned,
    combined,
    evenly_spaced,
    output,
    segment_ends,
    walk_states,
)
from kssm.ops.matrix_scan.kernel_plan import head_parts


class Gradients(NamedTuple):
    """The backward pass's results."""

    x: Tensor
    b: Tensor
    c: Tensor
    alpha: Tensor
    dt: Tensor
    omega: Tensor
    parameters: Sequence[Tensor]
    initial: Tensor  # [B, H, W, P]


def backward(
    scan: Scan, turned: Turned, starts: Tensor | None, dy: Tensor, dfinal: Tensor
) -> Gradients:
    """All gradients, from those of y and of the last state (in the turning frame)."""
    dy = evenly_spaced(dy)
    states = _states(scan, turned, starts)
    adjoints = _adjoints(scan, turned, dy, dfinal, states)
    batch, tokens, heads, _ = scan.x.shape
    groups, width, chunks = scan.b.shape[2], scan.b.shape[3], scan.chunks
    parts = head_parts(batch * chunks * groups, heads // groups, scan.x.device)
    new = scan.x.new_empty
    fp32 = {"dtype": torch.float32}
    dx = output(scan.x, scan.lengths)
    db, dc = (new(parts, batch, tokens, groups, width, **fp32) for _ in range(2))
    ddecay, dweight = (torch.empty_like(turned.decay) for _ in range(2))
    chunk_backward_kernel[(batch * chunks * groups * parts,)](
        scan.x, dy, turned.b, turned.c, turned.decay, turned.weight, scan.lengths,
        states, adjoints.kept, dx, db, dc, ddecay, dweight,
        scan.x.stride(1), dy.stride(1), tokens, chunks,
        PARTS=parts, **scan.sizes, **scan.tuning.back.options,
    )  # fmt: skip
    pairs = width // 2
    optional = (scan.token_dt, scan.lengths)
    to_b, to_c = (new(batch, tokens, groups, width) for _ in range(2))
    domega = new(batch, tokens, groups, pairs, dtype=scan.omega.dtype)
    drate = new(batch, chunks, groups, pairs, **fp32)
    rotate_backward_kernel[(batch * chunks * groups,)](
        scan.b, scan.c, scan.omega, *optional, scan.parameters[2], turned.prefix,
        db, dc, adjoints.flow, to_b, to_c, domega, drate,
        scan.b.stride(1), scan.c.stride(1), scan.omega.stride(1), tokens, chunks,
        G=groups, N=pairs, Q=scan.tuning.chunk, PAIRS=triton.next_power_of_2(pairs), PARTS=parts,
        EXACT=scan.exact,
        SHARING=heads // groups, HEADS=triton.next_power_of_2(heads // groups),
    )  # fmt: skip
    dalpha = new(batch, tokens, heads, dtype=scan.alpha.dtype)
    ddt = new(batch, tokens, heads, dtype=scan.dt.dtype)
    dbias = new(2, batch, chunks, heads, **fp32)
    gates_backward_kernel[(batch * chunks,)](
        scan.alpha, scan.dt, *optional, *scan.parameters[:2], ddecay, dweight, adjoints.dend,
        dalpha, ddt, dbias, scan.alpha.stride(1), scan.dt.stride(1), tokens, chunks,
        H=heads, Q=scan.tuning.chunk, HEADS=triton.next_power_of_2(heads),
    )  # fmt: skip
    biases = dbias.sum((1, 2))
    parameters = [biases[0], biases[1], drate.sum((0, 1))]
    return Gradients(dx, to_b, to_c, dalpha, ddt, domega, parameters, adjoints.initial)


def _states(scan: Scan, turned: Turned, starts: Tensor | None) -> Tensor:
    """States before each chunk and behind the last [B, K + 1, H, W, P], in x's dtype."""
    sizes = scan.sizes
    shape = (scan.chunks + 1, sizes["H"], sizes["W"], sizes["P"])
    kept = scan.x.new_empty(scan.x.shape[0], *shape)
    walk_states(scan, turned, starts, kept, None)
    return kept


class Adjoints(NamedTuple):
    """What the walk back along the chunks leaves."""

    kept: Tensor  # [B, K, H, W, P] behind each chunk, in x's dtype
    dend: Tensor  # [B, K, H]
    flow: Tensor  # [B, K, H, W]
    initial: Tensor  # [B, H, W, P]


def _adjoints(scan: Scan, turned: Turned, dy: Tensor, dfinal: Tensor, states: Tensor) -> Adjoints:
    sizes, segments = scan.sizes, scan.plan.segments
    behind = dfinal.unsqueeze(1)
    if segments > 1:
        ends = segment_ends(scan)
        _walk_adjoints(scan, turned, dy, None, None, None, ends)
        behind = combined(scan, ends, dfinal, back=True)
    batch, heads, width = scan.x.shape[0], sizes["H"], sizes["W"]
    new = scan.x.new_empty
    kept = new(batch, scan.chunks, heads, width, sizes["P"])
    dend = new(batch, scan.chunks, heads, dtype=torch.float32)
    flow = new(batch, scan.chunks, heads, width, dtype=torch.float32)
    ends = segment_ends(scan)
    _walk_adjoints(scan, turned, dy, behind, states, (kept, dend, flow), ends)
    return Adjoints(kept, dend, flow, ends[0][:, 0])


def _walk_adjoints(
    scan: Scan,
    turned: Turned,
    dy: Tensor,
    starts: Tensor | None,
    states: Tensor | None,
    results: tuple[Tensor, Tensor, Tensor] | None,
    ends: tuple[Tensor, Tensor],
) -> None:
    segments, span, _ = scan.plan
    grid = (scan.x.shape[0] * segments * scan.x.shape[2],)
    adjoints_kernel[grid](
        turned.c, dy, turned.decay, scan.lengths, starts, states,
        *(results or (None, None, None)), *ends,
        dy.stride(1), scan.tokens, scan.chunks, segments, span,
        **scan.sizes, **scan.tuning.states.options,
    )  # fmt: skip
