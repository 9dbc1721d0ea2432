"""The state arena: every row's state in one tensor per state entry.

Row 0 of each tensor is padding, for models to scribble on; rows 1 ... capacity are handed out as
slots. What the engine itself knows of a row stays on the host. A slot has a generation that grows
when it is freed, so a handle kept too long is told apart from the slot's next owner.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kssm.errors import CapacityError, StateError
from kssm.ops.launch import triton_installed
from kssm.runtime.contract import Slots, State, StateSpec
from kssm.runtime.schedule import bucket

if TYPE_CHECKING:
    from kssm.runtime.kernel_rows import Pieces


@dataclass(frozen=True, eq=False)
class Rows:
    """A handle on allocated rows: ``slots`` [n] index the arena's tensors."""

    slots: Slots
    generations: Slots

    def __len__(self) -> int:
        return len(self.slots)


@dataclass(eq=False)
class _Stamp:
    """One row's state [1, ...], ``packed`` where one kernel fills the device's tables."""

    device: State
    host: State
    packed: Tensor | None = None


class Arena:
    """Allocates, copies and frees state rows; not thread-safe, its owner is one thread.

    ``initial`` is the state of one fresh row ([1, ...] per entry), ``host`` likewise of the
    entries that no model sees: they are kept on the host. The arena starts with ``rows`` rows and
    doubles when they run out, up to ``max_rows``; growing replaces the tensors of ``tensors`` and
    bumps ``version``.
    """

    def __init__(
        self,
        spec: StateSpec,
        initial: State,
        *,
        rows: int,
        max_rows: int,
        device: torch.device | str = "cpu",
        host: State | None = None,
    ) -> None:
        fresh = {
            name: initial[name].detach().to(device, dtype).reshape(1, *shape).clone()
            for name, (shape, dtype) in spec.items()
        }
        self._fresh = _Stamp(fresh, host or {})
        self._nothing = _Stamp(_zeros(fresh), _zeros(host or {}))
        self._device = torch.device(device)
        self._max_rows = max_rows
        self._free: list[int] = []
        self._generations = np.zeros(1, dtype=np.int64)
        self._taken = np.zeros(1, dtype=np.bool_)
        self._replaced = np.zeros(1, dtype=np.bool_)
        self._pieces: tuple[State, dict[frozenset[str], Pieces | None]] | None = None
        self._spare: Tensor | None = None
        self.tensors: State = {name: row.clone() for name, row in fresh.items()}
        self.host: State = {name: row.clone() for name, row in (host or {}).items()}
        self.version = 0
        self._grow(min(rows, max_rows))

    @property
    def capacity(self) -> int:
        """Rows that exist on the device, padding not counted."""
        return len(self._generations) - 1

    @property
    def used(self) -> int:
        """Rows that are allocated."""
        return self.capacity - len(self._free)

    @property
    def max_rows(self) -> int:
        """Rows the arena may grow to."""
        return self._max_rows

    @property
    def nbytes(self) -> int:
        """Bytes of the arena's tensors on the device."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def allocate(self, count: int) -> Rows:
        """Take ``count`` fresh rows; all or none.

        Raises CapacityError ``rows_exhausted`` when the arena is full.
        """
        self._reserve(count)
        slots = np.array([self._free.pop() for _ in range(count)], dtype=np.int64)
        self._taken[slots] = True
        rows = Rows(slots, self._generations[slots])
        self.reset(rows)
        return rows

    def free(self, rows: Rows) -> None:
        """Give rows back and zero them; their handles become stale."""
        slots = self.check(rows)
        self._fill(slots, self._nothing)
        self._generations[slots] += 1
        self._taken[slots] = False
        self._free.extend(slots[::-1].tolist())

    def reset(self, rows: Rows) -> None:
        """Make the rows fresh again."""
        self._replaced[rows.slots] = True
        self._fill(self.check(rows), self._fresh)

    def gather(self, slots: Slots, names: Collection[str] | None = None) -> State:
        """A copy of the model's state at ``slots`` (0 = padding), [len(slots), ...] per entry.

        ``names`` are the entries to copy, None = all of the model's.
        """
        index = self.index(slots)
        wanted = self.tensors if names is None else names
        return {name: self.tensors[name].index_select(0, index) for name in wanted}

    def whole(self, slots: Slots) -> State:
        """A copy of everything at ``slots``, the host's entries included."""
        return self.keep(slots)()

    def keep(
        self, slots: Slots, names: Collection[str] | None = None, *, briefly: bool = False
    ) -> Callable[[], State]:
        """``whole`` as of now, to be taken apart into entries by those who need them.

        ``names`` are the device's entries to keep, None = all. ``briefly``: only until rows are
        kept so again, which saves looking for memory each time.
        """
        index = torch.from_numpy(slots)
        kept = {name: tensor.index_select(0, index) for name, tensor in self.host.items()}
        pieces = self._packed(names)
        if pieces is None:
            state = self.gather(slots, names) | kept
            return lambda: state
        packed = pieces.pack(self.index(slots), self._room(pieces, len(slots)) if briefly else None)
        return lambda: pieces.unpack(packed) | kept

    def write(self, slots: Slots, state: State) -> None:
        """Overwrite entries at ``slots`` with those of ``state`` ([len(slots), ...] each)."""
        self._replaced[slots] = True
        for tensors, index in self._tables(slots):
            for name in tensors.keys() & state.keys():
                tensors[name].index_copy_(0, index, state[name])

    def take_replaced(self, slots: Slots) -> Slots:
        """Those of ``slots`` that were reset or written to since they were last asked for."""
        replaced = slots[self._replaced[slots]]
        self._replaced[replaced] = False
        return replaced

    def check(self, rows: Rows) -> Slots:
        """The rows' slots; StateError ``stale_handle`` when they were freed meanwhile."""
        slots = rows.slots
        current = (self._generations[slots] == rows.generations) & self._taken[slots]
        if not current.all():
            raise StateError("the rows were already freed", code="stale_handle")
        return slots

    def index(self, slots: Slots) -> Tensor:
        """``slots`` as a tensor on the arena's device."""
        index = torch.from_numpy(slots)
        if self._device.type == "cuda":  # from pinned memory the host need not wait
            index = index.pin_memory()
        return index.to(self._device, non_blocking=True)

    def _fill(self, slots: Slots, stamp: _Stamp) -> None:
        """Overwrite everything at ``slots`` with one row's state."""
        pieces = self._packed()
        if pieces is None:
            _spread(stamp.device, self.tensors, self.index(slots))
        else:
            if stamp.packed is None:
                stamp.packed = pieces.packed(stamp.device)
            pieces.fill(self.index(slots), stamp.packed)
        _spread(stamp.host, self.host, torch.from_numpy(slots))

    def _room(self, pieces: Pieces, rows: int) -> Tensor:
        """Memory for packed rows that is used again and again."""
        if self._spare is None or self._spare.numel() < rows * pieces.width:
            self._spare = None  # free first what is to be replaced
            self._spare = pieces.room(bucket(rows))
        return self._spare

    def _packed(self, names: Collection[str] | None = None) -> Pieces | None:
        """How one kernel copies rows of the device's entries; None where it cannot."""
        if self._device.type != "cuda" or not triton_installed():
            return None
        known, wanted = self._pieces, frozenset(self.tensors if names is None else names)
        if known is None or known[0] is not self.tensors:
            known = self._pieces = self.tensors, {}
        if wanted not in known[1]:
            rows = importlib.import_module("kssm.runtime.kernel_rows")
            tables = {name: table for name, table in self.tensors.items() if name in wanted}
            known[1][wanted] = rows.Pieces.of(tables)
        return known[1][wanted]

    def _tables(self, slots: Slots) -> Iterator[tuple[State, Tensor]]:
        """The entries of the device and of the host, each with the index that fits."""
        yield self.tensors, self.index(slots)
        if self.host:
            yield self.host, torch.from_numpy(slots)

    def _reserve(self, count: int) -> None:
        needed = self.used + count
        if needed > self._max_rows:
            raise CapacityError(
                f"all {self._max_rows} state rows are in use", code="rows_exhausted"
            )
        capacity = max(self.capacity, 1)
        while capacity < needed:
            capacity *= 2
        if capacity > self.capacity:
            self._grow(min(capacity, self._max_rows))

    def _grow(self, capacity: int) -> None:
        old = self.capacity
        try:
            grown = {name: _extended(t, capacity) for name, t in self.tensors.items()}
            host = {name: _extended(t, capacity) for name, t in self.host.items()}
        except RuntimeError as error:  # the device's memory ended before max_rows did
            raise CapacityError("no memory for more state rows", code="rows_exhausted") from error
        self.tensors, self.host = grown, host
        self.version += 1
        extra = capacity - old
        self._generations = np.concatenate([self._generations, np.zeros(extra, dtype=np.int64)])
        self._taken = np.concatenate([self._taken, np.zeros(extra, dtype=np.bool_)])
        self._replaced = np.concatenate([self._replaced, np.zeros(extra, dtype=np.bool_)])
        self._free[:0] = range(capacity, old, -1)


def _spread(row: State, tables: State, index: Tensor) -> None:
    """Copy the one row [1, ...] of every entry to the rows ``index``."""
    for name, table in tables.items():
        table.index_copy_(0, index, row[name].expand(len(index), *table.shape[1:]))


def _zeros(state: State) -> State:
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def _extended(tensor: Tensor, capacity: int) -> Tensor:
    grown = tensor.new_zeros((capacity + 1, *tensor.shape[1:]))
    grown[: len(tensor)] = tensor
    return grown
