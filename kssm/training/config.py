"""What a pretraining run depends on, read from TOML files that may build on one another."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

from kssm.errors import InvalidInputError
from kssm.forecast.forecaster import ForecasterConfig
from kssm.models.registry import config_from_mapping
from kssm.models.stack import StackConfig
from kssm.training.averaging import AverageConfig
from kssm.training.corpus import CorpusConfig
from kssm.training.mixture import MixtureConfig
from kssm.training.optimizer import OptimizerConfig

T = TypeVar("T")
Table = dict[str, Any]


@dataclass(frozen=True)
class RunConfig:
    """How long and how to train.

    Attributes:
        seconds: length of the whole run in training time (compilation aside), over all slices.
        steps: bound on optimiser steps, whichever comes first; 0 = none.
        slice_seconds: stop (resumably) after this much of it, 0 = run to the end.
        save_seconds: time between saves during the run, 0 = at the end only.
        init: checkpoint, by name or folder, whose weights the run starts from; "" = random ones.
        precision: of the matrix products, as Fabric names it: "bf16-mixed" or "32-true".
        read_stride: one token in so many trains the head.
        thinned_share: share of batches with irregular sampling, told as dt.
        thinned_keep: share of the samples that such a batch keeps.
        seed: of weights and data.
        log_seconds: time between console lines.
        compile: compile the dense parts of the model.
        tensorboard: write the curve as TensorBoard events too.
    """

    seconds: float = 840.0
    steps: int = 0
    slice_seconds: float = 0.0
    save_seconds: float = 0.0
    init: str = ""
    precision: str = "bf16-mixed"
    read_stride: int = 2
    thinned_share: float = 0.1
    thinned_keep: float = 0.6875
    seed: int = 0
    log_seconds: float = 20.0
    compile: bool = True
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.precision not in ("bf16-mixed", "32-true"):
            message = f"precision is bf16-mixed or 32-true, not {self.precision!r}"
            raise InvalidInputError(message, code="invalid_config")
        if self.seconds <= 0 or self.read_stride < 1:
            message = "seconds and read_stride must be positive"
            raise InvalidInputError(message, code="invalid_config")


@dataclass(frozen=True)
class PretrainConfig:
    """Everything a run depends on; one TOML table for each part."""

    model: ForecasterConfig = field(default_factory=ForecasterConfig)
    data: MixtureConfig = field(default_factory=MixtureConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    average: AverageConfig = field(default_factory=AverageConfig)
    run: RunConfig = field(default_factory=RunConfig)


def load_config(path: str | Path) -> PretrainConfig:
    """Read a TOML file; unknown keys raise ``invalid_config``."""
    return build_config(read_tables(path))


def read_tables(path: str | Path) -> Table:
    """The tables of a TOML file. With ``base = "FILE"`` (beside it) they are laid over that file's
    tables, key by key. Raises ``invalid_config``."""
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidInputError(f"cannot read {path}: {error}", "invalid_config") from error
    base = tables.pop("base", None)
    return tables if base is None else overlay(read_tables(Path(path).parent / str(base)), tables)


def overlay(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Table:
    """``base`` with the entries of ``changes`` in their places, table by table.

    A table that names its ``model`` takes the whole place of the one below it: the sizes of one
    kind of backbone mean nothing to another.
    """
    merged = dict(base)
    for name, value in changes.items():
        below = merged.get(name)
        both = isinstance(below, dict) and isinstance(value, dict) and "model" not in value
        merged[name] = overlay(cast("Table", below), cast("Table", value)) if both else value
    return merged


def build_config(tables: Table) -> PretrainConfig:
    """A configuration from plain tables; unknown keys raise ``invalid_config``."""
    return _build(PretrainConfig, tables)


def _backbone(values: Any) -> StackConfig:
    """The sizes of a stack of the kind that its key ``model`` names, ``kssm`` without it."""
    if not isinstance(values, dict):
        raise InvalidInputError("backbone: expected a table", code="invalid_config")
    sizes = dict(cast("Table", values))
    return config_from_mapping(sizes.pop("model", "kssm"), sizes)


def _build(kind: type[T], values: Any) -> T:
    """A dataclass from a TOML table, tables inside it included."""
    if not isinstance(values, dict):
        raise InvalidInputError(f"{kind.__name__}: expected a table", code="invalid_config")
    types = get_type_hints(kind)
    arguments: Table = {}
    for name, value in cast("Table", values).items():
        wanted = types.get(name)
        if wanted is StackConfig:
            arguments[name] = _backbone(value)
        elif isinstance(wanted, type) and is_dataclass(wanted):
            arguments[name] = _build(wanted, value)
        else:
            arguments[name] = tuple(cast("list[Any]", value)) if isinstance(value, list) else value
    try:
        return kind(**arguments)
    except TypeError as error:
        raise InvalidInputError(f"{kind.__name__}: {error}", "invalid_config") from error
