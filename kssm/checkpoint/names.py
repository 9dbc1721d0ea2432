"""Weights under other libraries' names: one table a model, read in both directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kssm.errors import CheckpointError


@dataclass(frozen=True)
class Weight:
    """One of our tensors and those of theirs that it is made of; ``{i}`` stands for the layer."""

    theirs: tuple[str, ...]
    ours: str
    join: Callable[[Sequence[Tensor]], Tensor]
    """From their tensors to ours."""
    part: Callable[[Tensor], Sequence[Tensor]]
    """From our tensor to theirs; also works on shapes (tensors on the device "meta")."""

    def at(self, layer: int) -> Weight:
        """The weight of one layer."""
        theirs = tuple(name.format(i=layer) for name in self.theirs)
        return replace(self, theirs=theirs, ours=self.ours.format(i=layer))

    def under(self, theirs: str, ours: str) -> Weight:
        """The same weight with prefixes before its names."""
        names = tuple(theirs + name for name in self.theirs)
        return replace(self, theirs=names, ours=ours + self.ours)


def single(
    theirs: str,
    ours: str,
    load: Callable[[Tensor], Tensor] | None = None,
    save: Callable[[Tensor], Tensor] | None = None,
) -> Weight:
    """One tensor under two names; ``load`` and ``save`` change the layout, None = as it is."""

    def join(tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0] if load is None else load(tensors[0])

    def part(tensor: Tensor) -> Sequence[Tensor]:
        return [tensor if save is None else save(tensor)]

    return Weight((theirs,), ours, join, part)


def fused(theirs: Sequence[str], ours: str, sizes: Sequence[int]) -> Weight:
    """Tensors of theirs that lie one below the other in ours, ``sizes`` rows each."""
    return Weight(
        tuple(theirs),
        ours,
        lambda tensors: torch.cat(list(tensors)),
        lambda tensor: tensor.split(list(sizes)),
    )


@dataclass(frozen=True)
class NameMap:
    """All weights of a model: those it has once, and those of each layer."""

    once: tuple[Weight, ...]
    layer: tuple[Weight, ...]

    def load(self, tensors: Mapping[str, Tensor], n_layers: int) -> dict[str, Tensor]:
        """Our tensors from theirs; ``CheckpointError`` names all that are missing or unknown."""
        weights = self.weights(n_layers)
        _compare({name for weight in weights for name in weight.theirs}, set(tensors))
        return {
            weight.ours: weight.join([tensors[name] for name in weight.theirs])
            for weight in weights
        }

    def save(self, tensors: Mapping[str, Tensor], n_layers: int) -> dict[str, Tensor]:
        """Their tensors from ours; ``CheckpointError`` names all that are missing or unknown."""
        return rename(tensors, self.weights(n_layers))

    def weights(self, n_layers: int) -> list[Weight]:
        """The weights of a model of that many layers."""
        return [*self.once, *(weight.at(i) for i in range(n_layers) for weight in self.layer)]


def rename(tensors: Mapping[str, Tensor], weights: Sequence[Weight]) -> dict[str, Tensor]:
    """Their tensors from ours; ``CheckpointError`` names all that are missing or unknown."""
    _compare({weight.ours for weight in weights}, set(tensors))
    return {
        name: part
        for weight in weights
        for name, part in zip(weight.theirs, weight.part(tensors[weight.ours]), strict=True)
    }


def _compare(expected: set[str], given: set[str]) -> None:
    problems = [f"missing {name}" for name in sorted(expected - given)]
    problems += [f"unexpected {name}" for name in sorted(given - expected)]
    if problems:
        raise CheckpointError("; ".join(problems))
