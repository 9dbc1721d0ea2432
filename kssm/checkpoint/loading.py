"""Filling a model from a folder: everything is checked first, then tensor by tensor copied."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from kssm.checkpoint.folder import TensorFolder, listing
from kssm.checkpoint.names import Weight, single
from kssm.errors import CheckpointError

_NO_ALIASES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Naming:
    """How a folder's tensors become a model's.

    Attributes:
        weights: every weight of the model.
        aliases: tensors a file may hold beside, and those whose copies they must then be.
        ignored: endings of tensors that are computed here (rotary frequencies).
    """

    weights: Sequence[Weight]
    aliases: Mapping[str, str] = field(default_factory=lambda: _NO_ALIASES)
    ignored: tuple[str, ...] = ()


def own_names(model: nn.Module) -> Naming:
    """The names a model gives its weights itself."""
    return Naming([single(name, name) for name in model.state_dict()])


@torch.no_grad()
def load_weights(
    model: nn.Module,
    folder: str | Path,
    naming: Naming | None = None,
    *,
    check_values: bool = True,
) -> None:
    """Load a folder's weights into ``model``, converting floating dtypes to the model's.

    Files are memory-mapped and read one tensor at a time, first to check and then to copy.

    Args:
        model: keeps its dtypes (``precision.convert_`` changes them beforehand).
        folder: holds model.safetensors, or shards and their index.
        naming: whose names the file uses, None = the model's own.
        check_values: refuse values that are not finite, or not in the model's dtype.

    Raises:
        CheckpointError: names every missing, unexpected, misshapen and non-finite tensor; the
            model is untouched then.
    """
    names = own_names(model) if naming is None else naming
    target = model.state_dict()
    with TensorFolder(folder) as file:
        problems = _layout_problems(file, names, target)
        problems += _value_problems(file, names, target) if check_values else []
        if problems:
            raise CheckpointError(f"{file.path}: {listing(problems)}")
        for weight in names.weights:
            target[weight.ours].copy_(weight.join([file.get(name) for name in weight.theirs]))


def _layout_problems(file: TensorFolder, names: Naming, target: Mapping[str, Tensor]) -> list[str]:
    expected = {name for weight in names.weights for name in weight.theirs}
    problems = [f"missing {name}" for name in sorted(expected - set(file))]
    extra = set(file) - expected - names.aliases.keys()
    problems += [f"unexpected {n}" for n in sorted(extra) if not n.endswith(names.ignored or "\0")]
    for weight in names.weights:
        for name, shape in _shapes(weight, target[weight.ours]):
            if name in file:
                problems += _form_problems(file, name, shape, target[weight.ours].dtype)
    return problems


def _shapes(weight: Weight, ours: Tensor) -> list[tuple[str, tuple[int, ...]]]:
    """The shapes that their tensors must have."""
    parts = weight.part(torch.empty(ours.shape, device="meta"))
    return [(n, tuple(part.shape)) for n, part in zip(weight.theirs, parts, strict=True)]


def _form_problems(
    file: TensorFolder, name: str, shape: tuple[int, ...], ours: torch.dtype
) -> list[str]:
    if file.shape(name) != shape:
        return [f"{name} has shape {list(file.shape(name))}, expected {list(shape)}"]
    dtype = file.dtype(name)
    if ours.is_floating_point and (dtype is None or not dtype.is_floating_point):
        return [f"{name} has dtype {dtype}, expected floating point"]
    if not ours.is_floating_point and dtype is not ours:
        return [f"{name} has dtype {dtype}, expected {ours}"]
    return []


def _value_problems(file: TensorFolder, names: Naming, target: Mapping[str, Tensor]) -> list[str]:
    problems: list[str] = []
    for weight in names.weights:
        for name in weight.theirs:
            if name in file:
                problems += _range_problems(name, file.get(name), target[weight.ours].dtype)
    for name, original in names.aliases.items():
        if name in file and original in file and not _equal(file.get(name), file.get(original)):
            problems.append(f"{name} differs from {original}")
    return problems


def _range_problems(name: str, tensor: Tensor, dtype: torch.dtype) -> list[str]:
    if not tensor.is_floating_point() or not tensor.numel():
        return []
    ends = [float(end) for end in tensor.aminmax()]  # NaN and infinities show in the ends
    if not all(map(math.isfinite, ends)):
        return [f"{name} holds non-finite values"]
    if dtype.is_floating_point and max(map(abs, ends)) > torch.finfo(dtype).max:
        return [f"{name} holds values beyond the range of {dtype}"]
    return []


def _equal(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and torch.equal(left, right)
