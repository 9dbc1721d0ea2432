"""How a scan is cut into programs: blocks of channels times chunks of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import triton
from torch import Tensor


@dataclass(frozen=True)
class Tuning:
    """How a pass is cut into programs of ``warps`` warps, ``block_d`` channels each program.

    Tokens are loaded ``unroll`` at a time, ``ahead`` such groups before they are needed.
    A sequence is cut in time chunks only when there are fewer than ``enough`` programs a
    multiprocessor without that: it costs a second reading of the inputs. Then there are ``wanted``.
    """

    block_d: int = 64
    warps: int = 1
    unroll: int = 4
    ahead: int = 2
    enough: int = 4
    wanted: int = 16
    shortest: int = 64

    @property
    def keep(self) -> int:
        """Tokens that one kept state stands for in the backward pass."""
        return self.unroll

    @property
    def share(self) -> int:
        """Channels a warp."""
        return self.block_d // self.warps

    def keeping(self, keep: int | None) -> Tuning:
        """The same, with groups of at least ``keep`` tokens."""
        if keep is None or keep <= self.unroll:
            return self
        return replace(self, unroll=keep, ahead=max(1, self.ahead * self.unroll // keep))


@dataclass(frozen=True)
class RingTuning:
    """Rows walked by walk.cu or walk_back.cu, ``ahead`` - 1 groups of tokens asked for early.

    Backward, rows are cut where there are fewer than ``enough`` programs a multiprocessor; then
    there are ``wanted``, of at least ``shortest`` tokens.
    """

    ahead: int = 4
    enough: int = 4
    wanted: int = 8
    shortest: int = 64

    @property
    def keep(self) -> int:
        """Tokens that one kept state stands for in walk_back.cu."""
        return 4


@dataclass(frozen=True)
class TileTuning:
    """A tile of tile.cu: ``warps`` warps with a ``run`` of tokens each.

    ``unroll`` tokens are in flight in a warp, and a multiprocessor holds ``resident`` tiles. A
    row's tiles wait for the state of every ``every``-th: more where there are few rows.
    """

    warps: int = 4
    run: int = 24
    unroll: int = 4
    resident: int = 4
    every: int = 1

    @property
    def tokens(self) -> int:
        """Tokens of a tile."""
        return self.warps * self.run

    def keeping(self, keep: int | None) -> TileTuning:
        """The same, made for keeping a state every ``keep`` tokens, which takes shared memory."""
        if keep is None:
            return self
        unroll = max(self.unroll, keep)
        return replace(self, run=max(3 * self.run // 4 // unroll, 1) * unroll, unroll=unroll)


class Rows(NamedTuple):
    """Where the rows of a batch lie among its tokens, as the kernels read it."""

    lengths: Tensor | None
    offsets: Tensor | None
    table: Tensor | None = None
    first: Tensor | None = None


@dataclass(frozen=True)
class Cut:
    """One pass's grid: ``units`` chunks of at most ``chunk_len`` tokens, ``blocks`` wide.

    ``chunks`` is their number in a row; 0 when rows are packed and differ.
    """

    block_d: int
    blocks: int
    units: int
    chunks: int
    chunk_len: int

    @classmethod
    def plan(
        cls,
        shape: Sequence[int],
        groups: int,
        tuning: Tuning,
        device: torch.device,
        packed_rows: int | None = None,
    ) -> Cut:
        """The cut for tokens [B, T, D] in ``groups`` groups, or [1, T, D] with ``packed_rows``."""
        batch, tokens, channels = shape
        block_d, blocks = block_channels(channels, groups, tuning.block_d, tuning.warps)
        there = processors(device)
        chunks = 1
        if packed_rows is not None or batch * blocks < tuning.enough * there:
            chunks = triton.cdiv(tuning.wanted * there, batch * blocks)
        chunk_len = max(triton.cdiv(tokens, chunks), tuning.shortest)
        step = tuning.unroll * tuning.ahead
        chunk_len = triton.cdiv(chunk_len, step) * step
        return cls.fixed(shape, (block_d, blocks), chunk_len, packed_rows)

    @classmethod
    def fixed(
        cls,
        shape: Sequence[int],
        block: tuple[int, int],
        chunk_len: int,
        packed_rows: int | None,
    ) -> Cut:
        """The cut into chunks of a given length and ``block_channels``."""
        batch, tokens, _ = shape
        block_d, blocks = block
        if packed_rows is not None:
            return cls(block_d, blocks, tokens // chunk_len + packed_rows, 0, chunk_len)
        chunks = triton.cdiv(tokens, chunk_len)
        return cls(block_d, blocks, batch * chunks, chunks, chunk_len)

    @property
    def programs(self) -> int:
        return self.units * self.blocks

    def rows(self, lengths: Tensor | None, offsets: Tensor | None) -> Rows:
        """The rows' places; for packed ones also which unit is whose, without a host's wait."""
        if offsets is None:
            return Rows(lengths, None)
        counts = (offsets.diff() + (self.chunk_len - 1)).div_(self.chunk_len, rounding_mode="floor")
        first = torch.zeros_like(offsets)
        torch.cumsum(counts.clamp_(min=1), 0, out=first[1:])
        units = torch.arange(self.units, device=offsets.device, dtype=offsets.dtype)
        table = torch.searchsorted(first[1:], units, right=True)
        return Rows(lengths, offsets, table.clamp_(max=len(counts) - 1), first)


def block_channels(channels: int, groups: int, wanted: int, warps: int) -> tuple[int, int]:
    """(channels a program, programs side by side) when ``wanted`` channels a program are asked for.

    A program's channels are of one group, or all channels of every group it touches, as many a
    warp as asked for.
    """
    width, share = channels // groups, wanted // warps
    if wanted >= 2 * width and width % share == 0 and channels % wanted == 0:
        return wanted, channels // wanted
    block_d = min(share, triton.next_power_of_2(width))
    return block_d, groups * triton.cdiv(width, block_d)


def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; the interpreter counts as one."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
