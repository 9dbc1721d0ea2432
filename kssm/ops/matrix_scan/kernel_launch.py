"""Launching the Triton kernels: which work goes where, and memory for their results."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from kssm.ops.matrix_scan.kernel_chunks import (
    adjoints_kernel,
    chunk_backward_kernel,
    combine_kernel,
    states_kernel,
    walk_kernel,
)
from kssm.ops.matrix_scan.kernel_gates import (
    gates_backward_kernel,
    gates_kernel,
    rotate_backward_kernel,
    rotate_kernel,
)


class Build(NamedTuple):
    """How a kernel is compiled."""

    warps: int
    stages: int
    registers: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        return {"STAGES": self.stages, "num_warps": self.warps, "maxnreg": self.registers}


@dataclass(frozen=True)
class Tuning:
    """How the kernels cut their work.

    Attributes:
        walk: warps, pipeline stages and registers a thread (None = no limit) of the kernel that
            computes outputs.
        states: of those that walk along states and their adjoints.
        back: of the one that computes gradients.
        chunk: tokens of a chunk.
        walkers: programs of the first kernel that fit on a multiprocessor at the same time.
    """

    walk: Build
    states: Build
    back: Build
    chunk: int = 64
    walkers: int = 4


def tuned(dtype: torch.dtype, values: int, width: int) -> Tuning:
    """The cut for inputs of ``dtype`` and states [width, values] of a head.

    Products in fp32 take three times the work and twice the memory of 16-bit ones.
    """
    if dtype == torch.float32:
        # Without a number ptxas compiles the last one for 32 registers and spills all others.
        return Tuning(Build(4, 1), Build(4, 1), Build(8, 1, 255), chunk=32)
    if width * values > 128 * 64:
        return Tuning(Build(8, 2), Build(8, 1), Build(8, 1), walkers=1)
    if width * values > 64 * 64:
        return Tuning(Build(4, 2), Build(4, 3), Build(8, 1), walkers=2)
    return Tuning(Build(4, 2, 128), Build(4, 3), Build(4, 2))


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
    def cut(self) -> tuple[int, int]:
        """Segments of a row, and the chunks of each."""
        room = _processors(self.x.device) * self.tuning.walkers
        segments = best_cut(self.x.shape[0] * self.x.shape[2], self.chunks, room)
        span = triton.cdiv(self.chunks, segments)
        return triton.cdiv(self.chunks, span), span


@functools.lru_cache(maxsize=4096)
def best_cut(walks: int, chunks: int, room: int) -> int:
    """Segments to cut each of ``walks`` rows and heads into, of which ``room`` run at a time.

    The time is that of the rounds one after another, each as long as a segment; a round that is
    not full runs a little faster. More than one segment costs a walk along the states before.
    """

    def time(segments: int) -> float:
        rounds = walks * segments / room
        pace = math.ceil(rounds) if rounds > 1 else 0.6 + 0.4 * rounds
        return pace * math.ceil(chunks / segments) * (1.0 if segments == 1 else 1.4)

    return min(range(1, max(1, min(chunks // 4, 256)) + 1), key=time)


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
    segments, span = scan.cut
    batch, tokens, heads, size = scan.x.shape
    y = _output(scan.x, scan.lengths)
    final = scan.x.new_empty(batch, heads, turned.b.shape[3], size, dtype=torch.float32)
    walk_kernel[(batch * segments * heads,)](
        scan.x, turned.b, turned.c, turned.decay, turned.weight, scan.lengths, starts, y, final,
        scan.x.stride(1), tokens, scan.chunks, segments, span,
        **scan.sizes, **scan.tuning.walk.options,
    )  # fmt: skip
    return y, final, starts if starts is not None else final.new_empty(0), turned


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
    parts = _parts(batch * chunks * groups, heads // groups, scan.x.device)
    new = scan.x.new_empty
    fp32 = {"dtype": torch.float32}
    dx = _output(scan.x, scan.lengths)
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


def _starts(scan: Scan, turned: Turned) -> Tensor | None:
    """The state before each segment [B, S, H, W, P]; None = zeros."""
    if scan.cut[0] == 1:
        return None if scan.initial is None else scan.initial.unsqueeze(1)
    ends = _segment_ends(scan)
    _walk_states(scan, turned, None, None, ends)
    return _combined(scan, ends, scan.initial, back=False)


def _states(scan: Scan, turned: Turned, starts: Tensor | None) -> Tensor:
    """States before each chunk and behind the last [B, K + 1, H, W, P], in x's dtype."""
    sizes = scan.sizes
    shape = (scan.chunks + 1, sizes["H"], sizes["W"], sizes["P"])
    kept = scan.x.new_empty(scan.x.shape[0], *shape)
    _walk_states(scan, turned, starts, kept, None)
    return kept


class Adjoints(NamedTuple):
    """What the walk back along the chunks leaves."""

    kept: Tensor  # [B, K, H, W, P] behind each chunk, in x's dtype
    dend: Tensor  # [B, K, H]
    flow: Tensor  # [B, K, H, W]
    initial: Tensor  # [B, H, W, P]


def _adjoints(scan: Scan, turned: Turned, dy: Tensor, dfinal: Tensor, states: Tensor) -> Adjoints:
    sizes, segments = scan.sizes, scan.cut[0]
    behind = dfinal.unsqueeze(1)
    if segments > 1:
        ends = _segment_ends(scan)
        _walk_adjoints(scan, turned, dy, None, None, None, ends)
        behind = _combined(scan, ends, dfinal, back=True)
    batch, heads, width = scan.x.shape[0], sizes["H"], sizes["W"]
    new = scan.x.new_empty
    kept = new(batch, scan.chunks, heads, width, sizes["P"])
    dend = new(batch, scan.chunks, heads, dtype=torch.float32)
    flow = new(batch, scan.chunks, heads, width, dtype=torch.float32)
    ends = _segment_ends(scan)
    _walk_adjoints(scan, turned, dy, behind, states, (kept, dend, flow), ends)
    return Adjoints(kept, dend, flow, ends[0][:, 0])


def _segment_ends(scan: Scan) -> tuple[Tensor, Tensor]:
    """Memory for where segments end [B, S, H, W, P] and their decays [B, S, H]."""
    sizes = scan.sizes
    shape = (scan.x.shape[0], scan.cut[0], sizes["H"])
    fp32 = {"dtype": torch.float32}
    new = scan.x.new_empty
    return new(*shape, sizes["W"], sizes["P"], **fp32), new(*shape, **fp32)


def _combined(
    scan: Scan, ends: tuple[Tensor, Tensor], initial: Tensor | None, *, back: bool
) -> Tensor:
    """Where each segment starts, from where each would end on its own."""
    starts = torch.empty_like(ends[0])
    size = starts.shape[3] * starts.shape[4]
    block = min(size, 1024)
    heads = starts.shape[2]
    combine_kernel[(starts.shape[0] * heads * (size // block),)](
        *ends, initial, starts, scan.cut[0], SIZE=size, H=heads, BLOCK=block, BACK=back
    )
    return starts


def _walk_states(
    scan: Scan,
    turned: Turned,
    starts: Tensor | None,
    kept: Tensor | None,
    ends: tuple[Tensor, Tensor] | None,
) -> None:
    segments, span = scan.cut
    grid = (scan.x.shape[0] * segments * scan.x.shape[2],)
    states_kernel[grid](
        turned.b, scan.x, turned.decay, turned.weight, scan.lengths, starts, kept,
        *(ends or (None, None)), scan.x.stride(1), scan.tokens, scan.chunks, segments, span,
        **scan.sizes, **scan.tuning.states.options,
    )  # fmt: skip


def _walk_adjoints(
    scan: Scan,
    turned: Turned,
    dy: Tensor,
    starts: Tensor | None,
    states: Tensor | None,
    results: tuple[Tensor, Tensor, Tensor] | None,
    ends: tuple[Tensor, Tensor],
) -> None:
    segments, span = scan.cut
    grid = (scan.x.shape[0] * segments * scan.x.shape[2],)
    adjoints_kernel[grid](
        turned.c, dy, turned.decay, scan.lengths, starts, states,
        *(results or (None, None, None)), *ends,
        dy.stride(1), scan.tokens, scan.chunks, segments, span,
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


def _parts(programs: int, heads: int, device: torch.device) -> int:
    """Programs that share the heads of a group, when there are too few chunks."""
    parts = 1
    while programs * parts < 2 * _processors(device) and heads % (2 * parts) == 0:
        parts *= 2
    return parts


def _output(like: Tensor, lengths: Tensor | None) -> Tensor:
    """Memory for a kernel's output; zeros when rows end early, for the kernels stop there."""
    make = like.new_empty if lengths is None else like.new_zeros
    return make(like.shape)


def _processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; the interpreter counts as one."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
