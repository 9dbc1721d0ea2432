"""Rows of many tables copied or filled by one Triton kernel: a launch for each takes longer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kssm.runtime.contract import State

_BLOCK = 1024
"""Words of four bytes that a program copies."""


@triton.jit(do_not_specialize=["pieces", "width"])
def gather_kernel(pieces_ptr, slots_ptr, out_ptr, pieces, width, BLOCK: tl.constexpr):
    """One piece of one row; ``pieces_ptr`` [pieces, 4] as ``Pieces`` lists them."""
    piece = pieces_ptr + tl.program_id(0) % pieces * 4
    row = (tl.program_id(0) // pieces).to(tl.int64)
    slot = tl.load(slots_ptr + row)
    table = tl.load(piece).to(tl.pointer_type(tl.int32))
    words, first = tl.load(piece + 1), tl.load(piece + 2)
    word = tl.arange(0, BLOCK)
    inside = first + word < words
    found = tl.load(table + slot * words + first + word, mask=inside)
    tl.store(out_ptr + row * width + tl.load(piece + 3) + word, found, mask=inside)


@triton.jit(do_not_specialize=["pieces"])
def fill_kernel(pieces_ptr, slots_ptr, packed_ptr, pieces, BLOCK: tl.constexpr):
    """One piece of one row, overwritten with that of the one packed row."""
    piece = pieces_ptr + tl.program_id(0) % pieces * 4
    slot = tl.load(slots_ptr + tl.program_id(0) // pieces)
    table = tl.load(piece).to(tl.pointer_type(tl.int32))
    words, first = tl.load(piece + 1), tl.load(piece + 2)
    word = tl.arange(0, BLOCK)
    inside = first + word < words
    found = tl.load(packed_ptr + tl.load(piece + 3) + word, mask=inside)
    tl.store(table + slot * words + first + word, found, mask=inside)


@dataclass(frozen=True, eq=False)
class Pieces:
    """How the rows of tables [rows, ...] lie side by side.

    ``list`` [pieces, 4] int64 on the device: a table's address, the words of its row, the first
    word of the piece there and in the packed row, which has ``width`` words. ``places``: where
    each table's begins.
    """

    tensors: State
    list: Tensor
    places: dict[str, int]
    width: int

    @classmethod
    def of(cls, tensors: State) -> Pieces | None:
        """None unless every row is whole words of contiguous memory."""
        lines: list[tuple[int, int, int, int]] = []
        places: dict[str, int] = {}
        width = 0
        for name, table in tensors.items():
            size = table[0].numel() * table.element_size()
            if size % 4 or not table.is_contiguous():
                return None
            words = size // 4
            places[name] = width
            lines += [
                (table.data_ptr(), words, first, width + first) for first in range(0, words, _BLOCK)
            ]
            width += words + words % 2  # eight bytes stay together
        device = next(iter(tensors.values())).device
        return cls(tensors, torch.tensor(lines, device=device), places, width)

    def room(self, rows: int) -> Tensor:
        """Memory for so many packed rows, one after the other."""
        return torch.empty(rows * self.width, dtype=torch.int32, device=self.list.device)

    def pack(self, slots: Tensor, room: Tensor | None = None) -> Tensor:
        """Copies of the rows ``slots`` [N] of every table, side by side: [N, width] int32.

        They lie in ``room``, if there is one, which is large enough.
        """
        words = len(slots) * self.width
        packed = (self.room(len(slots)) if room is None else room)[:words].view(-1, self.width)
        if len(slots):
            gather_kernel[(len(slots) * len(self.list),)](
                self.list, slots, packed, len(self.list), self.width, BLOCK=_BLOCK, num_warps=4
            )
        return packed

    def packed(self, state: State) -> Tensor:
        """One row's entries [1, ...] packed: [1, width]."""
        alone = Pieces.of(state)
        assert alone is not None
        assert alone.places == self.places
        return alone.pack(torch.zeros(1, dtype=torch.int64, device=self.list.device))

    def fill(self, slots: Tensor, packed: Tensor) -> None:
        """Overwrite the rows ``slots`` [N] of every table with the one packed row [1, width]."""
        if len(slots):
            fill_kernel[(len(slots) * len(self.list),)](
                self.list, slots, packed, len(self.list), BLOCK=_BLOCK, num_warps=4
            )

    def unpack(self, packed: Tensor) -> State:
        """The entries of packed rows, [N, ...] each: views into them."""
        return {name: self._entry(name, packed) for name in self.places}

    def _entry(self, name: str, packed: Tensor) -> Tensor:
        table, first = self.tensors[name], self.places[name]
        words = table[0].numel() * table.element_size() // 4
        own = packed[:, first : first + words].view(table.dtype)
        return own.view(len(packed), *table.shape[1:]) if table.dim() != 2 else own
