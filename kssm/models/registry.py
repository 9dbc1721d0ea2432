"""Every model by name: its configuration, its class, its presets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from kssm.errors import InvalidInputError
from kssm.models.hybrid import LAYERS, Hybrid, HybridConfig
from kssm.models.kssm import KSSM
from kssm.models.kssm_matrix import KSSMMatrix
from kssm.models.mamba import Mamba
from kssm.models.mamba2 import Mamba2
from kssm.models.rwkv4 import RWKV4
from kssm.models.rwkv6 import RWKV6
from kssm.models.s4d import S4D
from kssm.models.stack import Stack, StackConfig
from kssm.models.transformer import Transformer

PRESETS = ("tiny", "small", "base", "large")
"""Presets that every model has; of equal names all have about equally many parameters."""


@dataclass(frozen=True)
class Entry:
    """A model of the registry: ``model_class(config, gradient_checkpointing=...)`` builds it."""

    config_class: type[StackConfig]
    model_class: Callable[..., Stack]


MODELS: Mapping[str, Entry] = MappingProxyType(
    {
        "kssm": Entry(LAYERS["kssm"], KSSM),
        "kssm_matrix": Entry(LAYERS["kssm_matrix"], KSSMMatrix),
        "mamba": Entry(LAYERS["mamba"], Mamba),
        "mamba2": Entry(LAYERS["mamba2"], Mamba2),
        "rwkv4": Entry(LAYERS["rwkv4"], RWKV4),
        "rwkv6": Entry(LAYERS["rwkv6"], RWKV6),
        "s4d": Entry(LAYERS["s4d"], S4D),
        "transformer": Entry(LAYERS["transformer"], Transformer),
        "hybrid": Entry(HybridConfig, Hybrid),
    }
)


def build(
    name: str, config: str | StackConfig = "base", *, gradient_checkpointing: bool = False
) -> Stack:
    """A model with fresh weights.

    Args:
        name: a key of ``MODELS``.
        config: a preset's name, or a configuration of the model's own class.
        gradient_checkpointing: recompute each layer in the backward pass to save memory.

    Raises:
        InvalidInputError: codes ``unknown_model``, ``unknown_preset``, ``invalid_config``.
    """
    entry = _entry(name)
    sizes = preset(name, config) if isinstance(config, str) else config
    if not isinstance(sizes, entry.config_class):
        expected, given = entry.config_class.__name__, type(sizes).__name__
        raise InvalidInputError(f"{name} needs a {expected}, not a {given}", "invalid_config")
    return entry.model_class(sizes, gradient_checkpointing=gradient_checkpointing)


def preset(name: str, size: str) -> StackConfig:
    """The configuration ``size`` of a model; raises ``unknown_model``, ``unknown_preset``."""
    return _entry(name).config_class.preset(size)


def name_of(config: StackConfig) -> str:
    """The registry's name of the model that ``config`` describes."""
    return next(name for name, entry in MODELS.items() if type(config) is entry.config_class)


def config_from_mapping(name: str, values: Mapping[str, Any]) -> StackConfig:
    """The configuration whose ``dataclasses.asdict`` gave ``values`` (through JSON, say).

    Raises InvalidInputError: ``unknown_model``; ``invalid_config`` for unknown keys and values
    that do not fit.
    """
    config_class = _entry(name).config_class
    known = {field.name for field in fields(config_class)}
    if unknown := sorted(values.keys() - known):
        raise InvalidInputError(f"{name} has no settings {unknown}", code="invalid_config")
    given = dict(values)
    try:
        if name == "hybrid" and "layers" in given:
            layers: Mapping[str, Mapping[str, Any]] = given["layers"]
            given["layers"] = {kind: config_from_mapping(kind, layers[kind]) for kind in layers}
        return config_class(**given)
    except (TypeError, AttributeError) as error:
        raise InvalidInputError(f"{name}: {error}", code="invalid_config") from error


def _entry(name: str) -> Entry:
    if name not in MODELS:
        raise InvalidInputError(
            f"no model {name!r}, only {', '.join(MODELS)}", code="unknown_model"
        )
    return MODELS[name]
