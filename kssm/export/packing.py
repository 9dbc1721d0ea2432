"""A row's state as few flat tensors: one for each dtype."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kssm.models.base import State, StateSpec


@dataclass(frozen=True)
class Packed:
    """One flat tensor [rows, size] of a state.

    Attributes:
        name: of the tensor as an input; the output is called ``new_`` + name.
        dtype: of all its entries.
        entries: (name of the entry, shape of a row), in the order of the columns.
    """

    name: str
    dtype: torch.dtype
    entries: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def size(self) -> int:
        return sum(math.prod(shape) for _, shape in self.entries)


@dataclass(frozen=True)
class Layout:
    """Where every entry of a state lies in the packed tensors."""

    tensors: tuple[Packed, ...]

    @classmethod
    def of(cls, spec: StateSpec) -> Layout:
        """Entries of one dtype side by side, in the order of ``spec``."""
        dtypes = dict.fromkeys(dtype for _, dtype in spec.values())
        return cls(
            tuple(
                Packed(
                    f"state_{str(dtype).removeprefix('torch.')}",
                    dtype,
                    tuple((name, shape) for name, (shape, kind) in spec.items() if kind == dtype),
                )
                for dtype in dtypes
            )
        )

    def pack(self, state: State) -> tuple[Tensor, ...]:
        """Entries [rows, ...] -> tensors [rows, size]."""
        return tuple(
            torch.cat([state[name].flatten(1) for name, _ in packed.entries], dim=1)
            for packed in self.tensors
        )

    def unpack(self, tensors: tuple[Tensor, ...]) -> State:
        """The inverse of ``pack``, copied: what is done to the entries leaves the tensors alone."""
        state: State = {}
        for packed, tensor in zip(self.tensors, tensors, strict=True):
            sizes = [math.prod(shape) for _, shape in packed.entries]
            for (name, shape), part in zip(packed.entries, tensor.split(sizes, 1), strict=True):
                state[name] = part.unflatten(1, shape).clone()
        return state
