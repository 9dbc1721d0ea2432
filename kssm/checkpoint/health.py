"""Whether the numbers of a checkpoint look sound, tensor by tensor and without building a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor

from kssm.checkpoint.folder import TensorFolder

HUGE: Final = 1e5
"""Weights beyond this have left the range in which training puts them."""
_SILENT: Final = 1e-6


class Health(NamedTuple):
    """One tensor's condition.

    Attributes:
        name: under which it is stored.
        shape: its shape.
        dtype: as stored.
        non_finite: values that are NaN or infinite.
        huge: finite values beyond ``HUGE``.
        dead: rows (outputs) of a matrix that are zero, or next to nothing beside the others.
        rms: root of the mean square of the finite values.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    non_finite: int
    huge: int
    dead: int
    rms: float

    @property
    def sound(self) -> bool:
        """Whether there is nothing to say about it."""
        return self.non_finite == self.huge == self.dead == 0


def examine(folder: str | Path) -> list[Health]:
    """The condition of every tensor of a folder, read one at a time; raises CheckpointError."""
    with TensorFolder(folder) as file:
        return list(_conditions(file))


def condition(name: str, tensor: Tensor) -> Health:
    """The condition of one tensor."""
    wide = tensor.detach().double()
    finite = torch.isfinite(wide)
    kept = torch.where(finite, wide, 0.0)
    count = max(int(finite.sum()), 1)
    return Health(
        name,
        tuple(tensor.shape),
        str(tensor.dtype).removeprefix("torch."),
        int((~finite).sum()),
        int((kept.abs() > HUGE).sum()),
        _dead_rows(kept),
        float((kept.square().sum() / count).sqrt()),
    )


def _conditions(file: TensorFolder) -> Iterator[Health]:
    for name in file:
        yield condition(name, file.get(name))


def _dead_rows(values: Tensor) -> int:
    if values.dim() != 2 or len(values) < 2:
        return 0
    norms = values.norm(dim=1)
    return int((norms <= _SILENT * norms.median()).sum())
