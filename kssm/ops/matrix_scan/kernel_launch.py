"""Launching the Triton kernels: which work goes where, and memory for their results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from kssm.ops.matrix_scan.kernel_chunks import combine_kernel, states_kernel, walk_kernel
from kssm.ops.matrix_scan.kernel_gates import gates_kernel, rotate_kernel
from kssm.ops.matrix_scan.kernel_plan import Plan, Tuning, best_plan, processors


@dataclass(frozen=True)
class Scan:
    """Arguments of one call, as the kernels want them."""

    x: Tensor
    b: Tensor
    c: Tensor
    alpha: Tensor
    dt: Tensor
    omega: Tensor
    parameters: Sequence[Tensor]  # alpha_bias, dt_bias, rate
    token_dt: Tensor | None
    lengths: Tensor | None
    initial: Tensor | None  # [B, H, W, P]
    tuning: Tuning

    @property
    def tokens(self) -> int:
        return self.x.shape[1]

    @property
    def chunks(self) -> int:
        return triton.cdiv(self.tokens, self.tuning.chunk)

    @property
    def sizes(self) -> dict[str, Any]:
        """Compile-time sizes that the chunk kernels share."""
        return {
            "H": self.x.shape[2],
            "G": self.b.shape[2],
            "P": self.x.shape[3],
            "W": self.b.shape[3],
            "Q": self.tuning.chunk,
            "PRECISION": "tf32x3" if self.exact else "ieee",
        }

    @property
    def exact(self) -> bool:
        """Whether phases are worth fp64: 16-bit inputs do not carry it."""
        return self.x.dtype == torch.float32

    @property
    def plan(self) -> Plan:
        """How the walks along this call's rows are cut."""
        walks = self.x.shape[0] * self.x.shape[2]
        return best_plan(walks, self.chunks, processors(self.x.device), self.tuning.walks)


class Turned(NamedTuple):
    """What the gate kernels leave for the chunk kernels."""

    b: Tensor  # [B, T, G, W]
    c: Tensor
    decay: Tensor  # [B, H, K Q]
    weight: Tensor
    prefix: Tensor  # [B, G, N, K] int64, turns of 2^-32 up to each chunk's end


def turn(scan: Scan) -> Turned:
    """Gates of all tokens, and B and C in the turning frame."""
    batch, tokens, groups, width = scan.b.shape
    heads, chunks, pairs = scan.x.shape[2], scan.chunks, width // 2
    chunk = scan.tuning.chunk
    fp32 = {"dtype": torch.float32}
    decay, weight = (scan.x.new_empty(batch, heads, chunks * chunk, **fp32) for _ in range(2))
    totals = scan.x.new_empty(batch, groups, pairs, chunks, dtype=torch.int32)
    cover = {"N": pairs, "Q": chunk, "PAIRS": triton.next_power_of_2(pairs), "EXACT": scan.exact}
    optional = (scan.token_dt, scan.lengths)
    gates_kernel[(batch * chunks,)](
        scan.alpha, scan.dt, scan.omega, *optional, *scan.parameters, decay, weight, totals,
        scan.alpha.stride(1), scan.dt.stride(1), scan.omega.stride(1), tokens, chunks,
        H=heads, G=groups, HEADS=triton.next_power_of_2(heads), **cover,
    )  # fmt: skip
    prefix = totals.cumsum(-1)
    b, c = (scan.b.new_empty(batch, tokens, groups, width, dtype=scan.x.dtype) for _ in range(2))
    rotate_kernel[(batch * chunks * groups,)](
        scan.b, scan.c, scan.omega, *optional, scan.parameters[2], prefix, b, c,
        scan.b.stride(1), scan.c.stride(1), scan.omega.stride(1), tokens, chunks,
        G=groups, **cover,
    )  # fmt: skip
    return Turned(b, c, decay, weight, prefix)


def forward(scan: Scan) -> tuple[Tensor, Tensor, Tensor, Turned]:
    """y, the state [B, H, W, P] behind every row in the turning frame, the segments' starts
    [B, S, H, W, P] and what ``turn`` gave."""
    turned = turn(scan)
    starts = _starts(scan, turned)
    segments, span, build = scan.plan
    batch, tokens, heads, size = scan.x.shape
    y = output(scan.x, scan.lengths)
    final = scan.x.new_empty(batch, heads, turned.b.shape[3], size, dtype=torch.float32)
    walk_kernel[(batch * segments * heads,)](
        scan.x, turned.b, turned.c, turned.decay, turned.weight, scan.lengths, starts, y, final,
        scan.x.stride(1), tokens, scan.chunks, segments, span,
        **scan.sizes, **build.options,
    )  # fmt: skip
    return y, final, starts if starts is not None else final.new_empty(0), turned


def _starts(scan: Scan, turned: Turned) -> Tensor | None:
    """The state before each segment [B, S, H, W, P]; None = zeros."""
    if scan.plan.segments == 1:
        return None if scan.initial is None else scan.initial.unsqueeze(1)
    ends = segment_ends(scan)
    walk_states(scan, turned, None, None, ends)
    return combined(scan, ends, scan.initial, back=False)


def segment_ends(scan: Scan) -> tuple[Tensor, Tensor]:
    """Memory for where segments end [B, S, H, W, P] and their decays [B, S, H]."""
    sizes = scan.sizes
    shape = (scan.x.shape[0], scan.plan.segments, sizes["H"])
    fp32 = {"dtype": torch.float32}
    new = scan.x.new_empty
    return new(*shape, sizes["W"], sizes["P"], **fp32), new(*shape, **fp32)


def combined(
    scan: Scan, ends: tuple[Tensor, Tensor], initial: Tensor | None, *, back: bool
) -> Tensor:
    """Where each segment starts, from where each would end on its own."""
    starts = torch.empty_like(ends[0])
    size = starts.shape[3] * starts.shape[4]
    block = min(size, 1024)
    heads = starts.shape[2]
    combine_kernel[(starts.shape[0] * heads * (size // block),)](
        *ends, initial, starts, scan.plan.segments, SIZE=size, H=heads, BLOCK=block, BACK=back
    )
    return starts


def walk_states(
    scan: Scan,
    turned: Turned,
    starts: Tensor | None,
    kept: Tensor | None,
    ends: tuple[Tensor, Tensor] | None,
) -> None:
    segments, span, _ = scan.plan
    grid = (scan.x.shape[0] * segments * scan.x.shape[2],)
    states_kernel[grid](
        turned.b, scan.x, turned.decay, turned.weight, scan.lengths, starts, kept,
        *(ends or (None, None)), scan.x.stride(1), scan.tokens, scan.chunks, segments, span,
        **scan.sizes, **scan.tuning.states.options,
    )  # fmt: skip


def evenly_spaced(tensor: Tensor) -> Tensor:
    """[B, T, ...] with every token one run of memory and all tokens equally far apart.

    Slices of a wider projection qualify as they are; anything else is copied.
    """
    token = tensor[0, 0]
    even = tensor.shape[0] == 1 or tensor.stride(0) == tensor.shape[1] * tensor.stride(1)
    if token.is_contiguous() and even and tensor.shape[1] > 1 and tensor.stride(1) > 0:
        return tensor
    return tensor.contiguous()


def output(like: Tensor, lengths: Tensor | None) -> Tensor:
    """Memory for a kernel's output; zeros when rows end early, for the kernels stop there."""
    make = like.new_empty if lengths is None else like.new_zeros
    return make(like.shape)
