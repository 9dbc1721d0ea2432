"""The CPU step: the whole of ``SignalForecaster.step_`` as one compiled function.

It reads a packed copy of the weights once a step, and is used wherever it can be; the torch code
of the forecaster stays the reference and the fallback. See docs/cpu-step.md.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from kssm.forecast.native.library import ArenaPointers, Library, load
from kssm.forecast.native.weights import Weights

if TYPE_CHECKING:
    from kssm.forecast.forecaster import SignalForecaster
    from kssm.models import State

__all__ = ["NativeStep"]

_ROWS_A_THREAD = 32
"""Rows that pay for a thread of their own (and for reading the weights once more)."""


class NativeStep:
    """Runs the compiled step for one forecaster and owns the packed copy of its weights.

    The copy is made on the first step and again whenever a weight was written to, or the model
    loaded or moved. What torch does not count is not seen: ``parameter.data.add_``, numpy views,
    a single weight or layer inside the backbone replaced by another object. Call ``forget`` after
    such a change; ``train`` and ``eval`` do so too.
    """

    def __init__(self, find: Callable[[], Library | None] = load) -> None:
        self._find = find
        self._weights: Weights | None = None

    def __reduce__(self) -> tuple[type[NativeStep], tuple[()]]:
        """Copies and pickles start empty: they belong to another model."""
        return NativeStep, ()

    def forget(self) -> None:
        """Drop the packed copy of the weights."""
        self._weights = None

    def step_(
        self,
        model: SignalForecaster,
        values: Tensor,
        arena: State,
        slots: Tensor,
        dt: Tensor | None,
    ) -> tuple[Tensor, Tensor] | None:
        """``SignalForecaster.step_``: (tail [N], healthy [N]), or None if torch must do it.

        A row is computed alike, bit for bit, whatever the batch it is in. Raises ``IndexError``
        for a slot outside the arena.
        """
        if model.training or torch.compiler.is_compiling() or not _is_plain(values, slots, dt):
            return None
        library = self._find()
        if library is None:
            return None
        weights = self._current(model, library)
        if weights.address is None:
            return None
        entries = _checked(weights, arena)
        if entries is None:
            return None
        tail = torch.empty(len(values), dtype=torch.float64)
        healthy = torch.empty(len(values), dtype=torch.bool)
        _Call(library, weights, _pointers(entries), values, dt, slots, tail, healthy).run()
        return tail, healthy

    def _current(self, model: SignalForecaster, library: Library) -> Weights:
        weights = self._weights
        if weights is None or not weights.are_current(model):
            weights = self._weights = Weights(model, library)
        return weights


class _Call(NamedTuple):
    """One step's arguments; all tensors are [N]."""

    library: Library
    weights: Weights
    arena: ArenaPointers
    values: Tensor
    dt: Tensor | None
    slots: Tensor
    tail: Tensor
    healthy: Tensor

    def run(self) -> None:
        """Advance all rows, on as many threads as torch would use and as pay."""
        count = len(self.values)
        threads = min(torch.get_num_threads(), count // _ROWS_A_THREAD)
        if threads < 2:
            self.advance(0, count)
            return
        cuts = [count * i // threads for i in range(threads + 1)]
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(self.advance, cuts[:-1], cuts[1:]))  # raises what a thread raised

    def advance(self, first: int, last: int) -> None:
        """Advance the rows from ``first`` up to ``last``."""
        assert self.weights.address is not None
        tensors = (self.values, self.dt, self.slots, self.tail, self.healthy)
        addresses = [
            None if tensor is None else tensor.data_ptr() + first * tensor.element_size()
            for tensor in tensors
        ]
        self.library.step(
            self.weights.sizes, self.weights.address, self.arena, last - first, addresses
        )


def _is_plain(values: Tensor, slots: Tensor, dt: Tensor | None) -> bool:
    """Whether the arguments are what the C code takes: [N] each, on the CPU, of its types."""
    rows = values.shape
    return (
        len(rows) == 1
        and _fits(values, rows, torch.float64)
        and _fits(slots, rows, torch.int64)
        and (dt is None or _fits(dt, rows, torch.float64))
    )


def _fits(tensor: Tensor, shape: Sequence[int], dtype: torch.dtype) -> bool:
    return (
        tensor.shape == shape and tensor.dtype is dtype and tensor.is_cpu and tensor.is_contiguous()
    )


def _checked(weights: Weights, arena: State) -> list[Tensor] | None:
    """The arena's entries in the order of the state's specification; None if one does not fit."""
    rows = len(arena["scaler"])
    tensors = [arena[name] for name, _, _ in weights.entries]
    for tensor, (_, shape, dtype) in zip(tensors, weights.entries, strict=True):
        if not _fits(tensor, (rows, *shape), dtype):
            return None
    return tensors


def _pointers(entries: Sequence[Tensor]) -> ArenaPointers:
    """Entries come as scaler, forecast, then window and state of each layer."""
    scaler, forecast, *layers = [tensor.data_ptr() for tensor in entries]
    array = ctypes.c_void_p * (len(layers) // 2)
    windows, states = array(*layers[::2]), array(*layers[1::2])
    return ArenaPointers(len(entries[0]), scaler, forecast, windows, states)
