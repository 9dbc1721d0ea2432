"""One kernel's copy of rows against one of each table."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from kssm.runtime.kernel_rows import Pieces

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def test_rows_of_every_table_are_copied() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"level": (), "odd": (3,), "wide": (2, 700), "last": (7,)}
    kinds = {"level": torch.float64, "odd": torch.float32}
    tensors = {
        name: torch.randn(6, *shape, generator=generator).to(DEVICE, kinds.get(name, torch.float64))
        for name, shape in shapes.items()
    }
    slots = torch.tensor([4, 0, 4, 5], device=DEVICE)
    pieces = Pieces.of(tensors)
    assert pieces is not None
    found = pieces.unpack(pieces.pack(slots))
    assert found.keys() == tensors.keys()
    for name, table in tensors.items():
        assert found[name].dtype == table.dtype
        assert torch.equal(found[name], table[slots])
    assert pieces.unpack(pieces.pack(slots[:0]))["wide"].shape == (0, 2, 700)
    room = pieces.room(8)
    packed = pieces.pack(slots, room)
    assert packed.data_ptr() == room.data_ptr()
    for name, entry in pieces.unpack(packed).items():
        assert torch.equal(entry, found[name])


def test_rows_of_every_table_are_filled() -> None:
    shapes = {"level": (), "odd": (3,), "wide": (2, 700)}
    tensors = {name: torch.randn(6, *shape, device=DEVICE) for name, shape in shapes.items()}
    before = {name: table.clone() for name, table in tensors.items()}
    fresh = {name: torch.randn(1, *shape, device=DEVICE) for name, shape in shapes.items()}
    pieces = Pieces.of(tensors)
    assert pieces is not None
    pieces.fill(torch.tensor([4, 1], device=DEVICE), pieces.packed(fresh))
    pieces.fill(torch.tensor([], dtype=torch.int64, device=DEVICE), pieces.packed(fresh))
    for name, table in tensors.items():
        for row in range(6):
            assert torch.equal(table[row], fresh[name][0] if row in (1, 4) else before[name][row])


def test_rows_of_half_words_are_left_to_others() -> None:
    assert Pieces.of({"halves": torch.zeros(4, 3, dtype=torch.float16, device=DEVICE)}) is None
    assert Pieces.of({"strided": torch.zeros(4, 8, device=DEVICE)[:, ::2]}) is None
