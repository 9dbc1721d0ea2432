"""Changing a model's linear layers to another format, and telling which they have."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import torch
from torch import nn

from kssm.errors import InvalidInputError
from kssm.quantization.linear import HalfLinear, Int8Linear, QuantizedLinear
from kssm.weight_format import WeightFormat, parse_format

_HALVES: Final[dict[WeightFormat, torch.dtype]] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def quantize(model: nn.Module, weights: WeightFormat, keep: Collection[str] = ()) -> None:
    """Give the linear layers of ``model`` another weight format, in place.

    Args:
        model: cannot be trained any more afterwards.
        weights: ``float32`` changes nothing.
        keep: names of linear layers to leave as they are. Layers with a bias always stay.

    Raises:
        InvalidInputError: ``invalid_weights`` for an unknown format, for weights that do not fit
            into the format's range, and for a model that is quantized already.
    """
    if parse_format(weights) == format_of(model):
        return
    if format_of(model) != "float32":
        message = f"the weights are {format_of(model)} and cannot become {weights}"
        raise InvalidInputError(message, code="invalid_weights")
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and not _has_bias(module) and path not in keep:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, _quantized(module, weights))


def format_of(model: nn.Module) -> WeightFormat:
    """The format of the model's quantized layers; ``float32`` if it has none."""
    layer = next((m for m in model.modules() if isinstance(m, QuantizedLinear)), None)
    if layer is None:
        return "float32"
    return parse_format(str(layer.weight.dtype).removeprefix("torch."))


def _has_bias(layer: nn.Linear) -> bool:
    return "bias" in dict(layer.named_parameters())


def _quantized(layer: nn.Linear, weights: WeightFormat) -> QuantizedLinear:
    dtype = _HALVES.get(weights)
    return Int8Linear(layer.weight) if dtype is None else HalfLinear(layer.weight, dtype)
