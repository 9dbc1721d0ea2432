"""Launching the chunk kernels: which work goes where, and memory for their results."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from kssm.ops.matrix_scan.kernel_chunks import combine_kernel, states_kernel, walk_kernel
from kssm.ops.matrix_scan.kernel_plan import (
    Plan,
    Tuning,
    best_plan,
    fetches_tiles,
    processors,
)


@dataclass(frozen=True)
class Chunked:
    """A recurrence of matrix states that only decay, as the chunk kernels want it.

    x is evenly spaced, b and c are contiguous and of x's dtype; decay and weight are those of
    ``kernel_chunks``.
    """

    x: Tensor  # [B, T, H, P]
    b: Tensor  # [B, T, G, W]
    c: Tensor
    decay: Tensor  # [B, H, K Q]
    weight: Tensor
    lengths: Tensor | None  # [B]
    initial: Tensor | None  # [B, H, W, P]
    tuning: Tuning
    b_rest: Tensor | None = None  # [B, T, G, W] what 16-bit b and c have lost
    c_rest: Tensor | None = None

    @property
    def tokens(self) -> int:
        return self.x.shape[1]

    @property
    def chunks(self) -> int:
        return triton.cdiv(self.tokens, self.tuning.chunk)

    @property
    def sizes(self) -> dict[str, Any]:
        """Compile-time sizes that the kernels share."""
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
        """Whether digits beyond those of 16-bit numbers matter."""
        return self.x.dtype == torch.float32

    @property
    def tiled(self) -> bool:
        """Whether the memory unit of a GPU can fetch tiles on its own (TMA), none across rows.

        It takes no notice of ``lengths``: what is behind a row's end may be anything.
        """
        if not (self.tuning.tiles and fetches_tiles(self.x.device)) or self.lengths is not None:
            return False
        whole = self.tokens % self.tuning.chunk == 0
        return aligned(self.x) and whole and self.x.shape[0] * self.tokens < 2**31

    @property
    def plan(self) -> Plan:
        """How the walks along this call's rows are cut."""
        walks = self.x.shape[0] * self.x.shape[2]
        builds = self.tuning.tiles if self.tiled else self.tuning.walks
        return best_plan(walks, self.chunks, processors(self.x.device), builds)


def forward(scan: Chunked, *, rounded: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """y, the state [B, H, W, P] behind every row, and the segments' starts [B, S, H, W, P].

    ``rounded`` products of 16-bit factors will do for the starts if no gradient is built on them.
    """
    starts = segment_starts(scan, rounded=rounded)
    segments, span, build = scan.plan
    batch, tokens, heads, size = scan.x.shape
    y = output(scan.x, scan.lengths)
    final = scan.x.new_empty(batch, heads, scan.b.shape[3], size, dtype=torch.float32)
    tiles = (tiled(scan, t) for t in (scan.x, scan.b, scan.c))
    walk_kernel[(batch * segments * heads,)](
        *tiles, scan.decay, scan.weight, scan.lengths, starts, tiled(scan, y), final,
        scan.x.stride(1), tokens, scan.chunks, segments, span,
        TILED=scan.tiled, **scan.sizes, **build.options,
    )  # fmt: skip
    return y, final, starts


def aligned(tokens: Tensor) -> bool:
    """Whether [B, T, ...] lies in memory as tiles must."""
    return tokens.data_ptr() % 16 == 0 and tokens.stride(1) * tokens.element_size() % 16 == 0


def tiled(scan: Chunked, tokens: Tensor) -> Any:
    """[B, T, N, width] as tiles of a chunk and ``width``, or as it is."""
    shape = [tokens.shape[0] * tokens.shape[1], tokens.shape[2] * tokens.shape[3]]
    return _tiles(scan, tokens, shape, tokens.stride(1), [scan.tuning.chunk, tokens.shape[3]])


def tiled_states(scan: Chunked, states: Tensor) -> Any:
    """[..., W, P] as tiles of one state, or as it is."""
    shape = [states.numel() // states.shape[-1], states.shape[-1]]
    return _tiles(scan, states, shape, shape[1], list(states.shape[-2:]))


def _tiles(scan: Chunked, tensor: Tensor, shape: list[int], row: int, tile: list[int]) -> Any:
    if not scan.tiled:
        return tensor
    descriptor = importlib.import_module("triton.tools.tensor_descriptor").TensorDescriptor
    return descriptor(tensor, shape, [row, 1], tile)


def segment_starts(scan: Chunked, *, rounded: bool) -> Tensor | None:
    """The state before each segment [B, S, H, W, P]; None = zeros. See also ``walk_states``."""
    if scan.plan.segments == 1:
        return None if scan.initial is None else scan.initial.unsqueeze(1)
    ends = segment_ends(scan)
    walk_states(scan, None, None, ends, rounded=rounded)
    return combined(ends, scan.initial, back=False)


def segment_ends(scan: Chunked) -> tuple[Tensor, Tensor]:
    """Memory for where segments end [B, S, H, W, P] and their decays [B, S, H]."""
    sizes = scan.sizes
    shape = (scan.x.shape[0], scan.plan.segments, sizes["H"])
    fp32 = {"dtype": torch.float32}
    new = scan.x.new_empty
    return new(*shape, sizes["W"], sizes["P"], **fp32), new(*shape, **fp32)


def combined(ends: tuple[Tensor, Tensor], initial: Tensor | None, *, back: bool) -> Tensor:
    """Where each segment starts, from where each would end on its own."""
    starts = torch.empty_like(ends[0])
    size = starts.shape[3] * starts.shape[4]
    block = min(size, 1024)
    heads = starts.shape[2]
    combine_kernel[(starts.shape[0] * heads * (size // block),)](
        *ends, initial, starts, starts.shape[1], SIZE=size, H=heads, BLOCK=block, BACK=back
    )
    return starts


def walk_states(
    scan: Chunked,
    starts: Tensor | None,
    kept: Tensor | None,
    ends: tuple[Tensor, Tensor] | None,
    *,
    rounded: bool,
) -> None:
    """See ``states_kernel``; ``rounded`` products of 16-bit factors are quicker."""
    rest = None if rounded or scan.b_rest is None else tiled(scan, scan.b_rest)
    segments, span, _ = scan.plan
    build = scan.tuning.starts if rounded else scan.tuning.states
    grid = (scan.x.shape[0] * segments * scan.x.shape[2],)
    states_kernel[grid](
        tiled(scan, scan.b), rest, tiled(scan, scan.x), scan.decay, scan.weight, scan.lengths,
        starts, kept, *(ends or (None, None)),
        scan.x.stride(1), scan.tokens, scan.chunks, segments, span,
        TILED=scan.tiled, ROUNDED=rounded or scan.exact, **scan.sizes, **build.options,
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
