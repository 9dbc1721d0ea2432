"""Weights under other libraries' names: one table a model, read in both directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from kssm.errors import CheckpointError


def _same(tensor: Tensor) -> Tensor:
    return tensor


class Weight(NamedTuple):
    """One tensor under two names; ``{i}`` in both stands for the layer."""

    theirs: str
    ours: str
    load: Callable[[Tensor], Tensor] = _same
    """From their layout to ours."""
    save: Callable[[Tensor], Tensor] = _same
    """From our layout to theirs."""

    def at(self, layer: int) -> Weight:
        return self._replace(theirs=self.theirs.format(i=layer), ours=self.ours.format(i=layer))


@dataclass(frozen=True)
class NameMap:
    """All weights of a model: those it has once, and those of each layer."""

    once: tuple[Weight, ...]
    layer: tuple[Weight, ...]

    def load(self, tensors: Mapping[str, Tensor], n_layers: int) -> dict[str, Tensor]:
        """Our tensors from theirs; ``CheckpointError`` names all that are missing or unknown."""
        weights = self._weights(n_layers)
        _compare({weight.theirs for weight in weights}, set(tensors))
        return {weight.ours: weight.load(tensors[weight.theirs]) for weight in weights}

    def save(self, tensors: Mapping[str, Tensor], n_layers: int) -> dict[str, Tensor]:
        """Their tensors from ours; ``CheckpointError`` names all that are missing or unknown."""
        weights = self._weights(n_layers)
        _compare({weight.ours for weight in weights}, set(tensors))
        return {weight.theirs: weight.save(tensors[weight.ours]) for weight in weights}

    def _weights(self, n_layers: int) -> list[Weight]:
        return [*self.once, *(weight.at(i) for i in range(n_layers) for weight in self.layer)]


def _compare(expected: set[str], given: set[str]) -> None:
    problems = [f"missing {name}" for name in sorted(expected - given)]
    problems += [f"unexpected {name}" for name in sorted(given - expected)]
    if problems:
        raise CheckpointError("; ".join(problems))
