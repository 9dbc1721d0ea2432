"""What the autotuner found, kept in files, so that nothing is tuned when a process starts.

An entry belongs to a device (its name), a kernel and a class of shapes. The package ships
``tuned.json`` with what was measured for it; ``python -m benchmarks.ops --tune`` writes the
user's own file, whose entries come first:

    $KSSM_TUNING_CACHE, else $XDG_CACHE_HOME/kssm/tuning.json, else ~/.cache/kssm/tuning.json

An empty ``KSSM_TUNING_CACHE`` means no user's file.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from kssm.errors import InvalidInputError

Choice = Mapping[str, int | None]
"""A kernel's tunable numbers, by name."""

Choices = dict[str, dict[str, dict[str, Choice]]]
"""Device name -> kernel -> shape class -> choice."""

SHIPPED = Path(__file__).with_name("tuned.json")

_VARIABLE = "KSSM_TUNING_CACHE"


@dataclass(frozen=True)
class ShapeClass:
    """Shapes that one choice serves: powers of two of their sizes, and what else matters."""

    kind: str  # for instance "16bit"
    lanes: int  # log2 of rows times channels, rounded
    tokens: int  # log2 of tokens a row, rounded

    @classmethod
    def of(cls, kind: str, rows: int, tokens: int, channels: int) -> ShapeClass:
        return cls(kind, _log2(rows * channels), _log2(tokens))

    @classmethod
    def parse(cls, text: str) -> ShapeClass:
        """From ``str``; InvalidInputError (``invalid_tuning_cache``) if it is not one."""
        try:
            kind, lanes, tokens = text.split("/")
            return cls(kind, int(lanes), int(tokens))
        except ValueError as error:
            raise _malformed(f"{text!r} is not a shape class") from error

    def __str__(self) -> str:
        return f"{self.kind}/{self.lanes}/{self.tokens}"

    def distance(self, other: ShapeClass) -> int:
        """How far apart two classes of a kind are."""
        return abs(self.lanes - other.lanes) + abs(self.tokens - other.tokens)


def tuned(kernel: str, device: torch.device, shape: ShapeClass) -> Choice | None:
    """The choice for the nearest measured class of the same kind; None if there is none.

    Raises:
        InvalidInputError: code ``invalid_tuning_cache``, for a file that cannot be read.
    """
    if device.type != "cuda":
        return None
    user = user_file()
    stamp = user.stat().st_mtime_ns if user is not None and user.is_file() else 0
    return _nearest(kernel, torch.cuda.get_device_name(device), shape, user, stamp)


def user_file() -> Path | None:
    """Where the user's choices are kept."""
    named = os.environ.get(_VARIABLE)
    if named is not None:
        return Path(named) if named else None
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "kssm" / "tuning.json"


def load(path: Path) -> Choices:
    """The choices in a file; InvalidInputError (``invalid_tuning_cache``) if it holds others."""
    try:
        choices = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _malformed(f"{path}: {error}") from error
    if not _is_choices(choices):
        raise _malformed(f"{path} does not map device, kernel, shape class to numbers")
    return cast("Choices", choices)


def save(path: Path, device_name: str, found: Mapping[str, Mapping[ShapeClass, Choice]]) -> None:
    """Add what was found (kernel -> shape class -> choice) to a file, in one step."""
    choices = load(path) if path.is_file() else Choices()
    kernels = choices.setdefault(device_name, {})
    for kernel, entries in found.items():
        kernels.setdefault(kernel, {}).update({str(s): dict(c) for s, c in entries.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(f".{os.getpid()}.tmp")
    written.write_text(json.dumps(choices, indent=1, sort_keys=True) + "\n")
    written.replace(path)


@functools.lru_cache(maxsize=1024)
def _nearest(
    kernel: str, device_name: str, shape: ShapeClass, user: Path | None, _stamp: int
) -> Choice | None:
    """``tuned`` for one state of the files."""
    entries: dict[str, Choice] = {}
    for path in (SHIPPED, user):
        if path is not None and path.is_file():
            entries |= load(path).get(device_name, {}).get(kernel, {})
    same = [s for s in map(ShapeClass.parse, entries) if s.kind == shape.kind]
    if not same:
        return None
    return entries[str(min(same, key=lambda s: (shape.distance(s), str(s))))]


def _is_choices(value: Any) -> bool:
    """Whether a decoded file has the form of ``Choices``."""
    level = [value]
    for _ in range(4):
        if not all(isinstance(entry, dict) for entry in level):
            return False
        level = [inner for entry in level for inner in entry.values()]
    return all(number is None or type(number) is int for number in level)


def _log2(number: int) -> int:
    """The nearest power of two, as an exponent."""
    return round(float(torch.tensor(float(max(number, 1))).log2()))


def _malformed(message: str) -> InvalidInputError:
    return InvalidInputError(message, code="invalid_tuning_cache")
