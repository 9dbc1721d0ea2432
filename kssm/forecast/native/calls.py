"""Calls into the compiled library: their arguments' checks, and rows spread over threads."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from kssm.forecast.native.library import (
    ArenaPointers,
    Library,
    RowPointers,
    Series,
    check,
    pack_samples,
)
from kssm.forecast.native.weights import Layout, Weights

if TYPE_CHECKING:
    from kssm.models import State

TILE = 48
"""As in tile.h."""

_DOUBLE, _LONG = torch.float64, torch.int64
_TOKENS_A_THREAD = 32
"""Tokens that pay for a thread of their own (and for reading the weights once more)."""


def step_rows(
    library: Library,
    weights: Weights,
    arena: RowPointers,
    values: Tensor,
    dt: Tensor | None,
    slots: Tensor,
    groups: Tensor | None,
    tail: Tensor,
    healthy: Tensor,
) -> None:
    """One sample a row, all tensors [N].

    Neighbours of equal groups go on together or not at all (None: each row by itself).
    """
    assert weights.address is not None
    rows = tail.numel()
    starts = (
        values.data_ptr(),
        0 if dt is None else dt.data_ptr(),
        slots.data_ptr(),
        0 if groups is None else groups.data_ptr(),
        tail.data_ptr(),
        healthy.data_ptr(),
    )
    if rows < 2 * _TOKENS_A_THREAD:
        code = library.step(weights.sizes, weights.address, arena, pack_samples(rows, *starts))
        if code:
            check(code)
    else:
        share_rows(partial(_advance, library, weights, arena, starts), rows, groups)


def _advance(
    library: Library, weights: Weights, arena: RowPointers, starts: Sequence[int], some: range
) -> None:
    """Some of the rows; ``starts``: where each tensor's numbers are, 0 = there is no tensor."""
    assert weights.address is not None
    sizes = (8, 8, 8, 8, 8, 1)
    at = [start and start + some.start * size for start, size in zip(starts, sizes, strict=True)]
    check(library.step(weights.sizes, weights.address, arena, pack_samples(len(some), *at)))


def share_rows(advance: Callable[[range], None], rows: int, groups: Tensor | None) -> None:
    """Rows in ranges, one a thread, that do not part groups."""
    if groups is None:
        share(advance, torch.arange(rows + 1))
        return
    begins = torch.ones(rows + 1, dtype=torch.bool)
    torch.ne(groups[1:], groups[:-1], out=begins[1:rows])
    bounds = begins.nonzero().squeeze(1)
    cuts: list[int] = bounds.tolist()
    share(lambda some: advance(range(cuts[some.start], cuts[some.stop])), bounds)


class PrefillCall(NamedTuple):
    """Many samples a row: values, dt, tail [B, T]; lengths [B]; forecasts [B, T / every, K, 9]."""

    library: Library
    weights: Weights
    arena: RowPointers
    values: Tensor
    dt: Tensor | None
    lengths: Tensor
    tail: Tensor
    every: int
    forecasts: Tensor | None

    def run(self) -> None:
        """Advance all rows."""
        done = torch.zeros(len(self.lengths) + 1, dtype=torch.int64)
        torch.cumsum(self.lengths, 0, out=done[1:])
        share(self._advance, done)

    def _advance(self, rows: range) -> None:
        before = (self.values, self.dt, self.lengths, self.tail)
        series = Series(
            self.values.shape[1], *map(_address, before), self.every, _address(self.forecasts)
        )
        assert self.weights.address is not None
        self.library.prefill(self.weights.sizes, self.weights.address, self.arena, rows, series)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def share(advance: Callable[[range], None], done: Tensor) -> None:
    """Rows in ranges of about equal numbers of tokens, on as many threads as torch uses and pay.

    ``done`` [rows + 1]: tokens of all rows before each row, then the tokens of all.
    """
    rows, tokens = len(done) - 1, int(done[-1])
    threads = min(torch.get_num_threads(), rows, tokens // _TOKENS_A_THREAD)
    if threads < 2:
        advance(range(rows))
        return
    wanted = torch.arange(threads + 1) * tokens // threads
    cuts = torch.searchsorted(done, wanted).tolist()
    ranges = [range(start, stop) for start, stop in pairwise(cuts) if start < stop]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(advance, ranges))  # raises what a thread raised


def is_sample_batch(values: Tensor, slots: Tensor, dt: Tensor | None) -> bool:
    """Whether a step's arguments are what the C code takes: [N] each, on the CPU, of its types."""
    shape = values.shape
    return (
        len(shape) == 1
        and _fits(values, shape, _DOUBLE)
        and _fits(slots, shape, _LONG)
        and (dt is None or _fits(dt, shape, _DOUBLE))
    )


def is_series_batch(values: Tensor, lengths: Tensor | None, dt: Tensor | None) -> bool:
    """Whether prefill's arguments are: [B, T] float64 on the CPU and lengths [B] within T."""
    doubles = [values] if dt is None else [values, dt]
    if any(t.dtype is not torch.float64 or not t.is_cpu for t in doubles):
        return False
    if lengths is None:
        return True
    whole = lengths.is_cpu and lengths.dtype in (torch.int64, torch.int32)
    return (
        whole
        and lengths.shape == values.shape[:1]
        and bool(((lengths >= 0) & (lengths <= values.shape[1])).all())
    )


class KnownArena:
    """An arena that was checked, so that it need not be for every sample.

    What torch allows and nobody does goes unnoticed: to give one of its tensors other memory.
    """

    def __init__(self, weights: Weights, layout: Layout, arena: State) -> None:
        self._weights = weights
        self._layout = layout
        self._ids: list[int] | None = list(map(id, arena.values()))
        self._watched = [weakref.ref(tensor, self._end) for tensor in arena.values()]
        self.pointers = pointers([arena[name] for name, _, _ in layout.entries], layout)
        self._flags = torch.empty(0, dtype=torch.bool)

    def is_still(self, weights: Weights, layout: Layout, arena: State) -> bool:
        """Whether ``arena`` consists of the same tensors."""
        known = weights is self._weights and layout is self._layout
        return known and self._ids == list(map(id, arena.values()))

    def outputs(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Memory for tail and healthy [N]: ``empty_like`` takes less time than ``empty``."""
        flags = self._flags
        if flags.shape != values.shape:
            flags = self._flags = torch.empty(values.shape, dtype=torch.bool, device="cpu")
        return torch.empty_like(values), torch.empty_like(flags)

    def _end(self, _: object) -> None:
        """Another object may get the identity of one that is gone."""
        self._ids = None


def checked(weights: Weights, layout: Layout, arena: State) -> KnownArena | None:
    """The arena, if every entry of the layout is in it and fits."""
    rows = len(arena["scaler"])
    for name, shape, dtype in layout.entries:
        if name not in arena or not _fits(arena[name], (rows, *shape), dtype):
            return None
    return KnownArena(weights, layout, arena)


def copied(layout: Layout, state: State) -> State | None:
    """A copy of the state in the C code's layout; None if an entry does not fit."""
    rows = len(state["scaler"])
    copy: State = {}
    for name, shape, dtype in layout.entries:
        entry = state[name]
        if entry.shape != (rows, *shape) or entry.dtype is not dtype or not entry.is_cpu:
            return None
        copy[name] = entry.clone(memory_format=torch.contiguous_format)
    return copy


def _fits(tensor: Tensor, shape: Sequence[int], dtype: torch.dtype) -> bool:
    return (
        tensor.dtype is dtype and tensor.shape == shape and tensor.is_cpu and tensor.is_contiguous()
    )


def pointers(entries: Sequence[Tensor], layout: Layout) -> RowPointers:
    """Entries come in the order of the layout: those of each resolution, then what joins them."""
    copies = len(layout.factors)
    size = (len(entries) - (5 if copies else 0)) // (copies + 1)
    parts = [_part(entries[i * size : (i + 1) * size]) for i in range(copies + 1)]
    counts = ctypes.c_int64 * copies
    joining = [tensor.data_ptr() for tensor in entries[(copies + 1) * size :]]
    return RowPointers(
        copies,
        (ArenaPointers * len(parts))(*parts),
        counts(*layout.factors),
        counts(*layout.mature),
        *joining,
    )


def _part(entries: Sequence[Tensor]) -> ArenaPointers:
    """Entries come as scaler, forecast, then window and state of each layer."""
    scaler, forecast, *layers = [tensor.data_ptr() for tensor in entries]
    array = ctypes.c_void_p * (len(layers) // 2)
    windows, states = array(*layers[::2]), array(*layers[1::2])
    return ArenaPointers(len(entries[0]), scaler, forecast, windows, states)
