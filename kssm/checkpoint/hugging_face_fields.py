"""The settings of a ``config.json`` of ``transformers``, and everything that is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from kssm.errors import CheckpointError, InvalidInputError
from kssm.models.stack import StackConfig

_MISSING: Final = object()


class Fields:
    """Reads a configuration and collects what is wrong with it until ``finish``."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._problems: list[str] = []

    def number(self, name: str, default: int | None = None) -> int:
        """A positive whole number."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self._problems.append(f"{name} is {value!r}, not a positive whole number")
            return 1
        return value

    def real(self, name: str, default: float) -> float:
        """A number."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._problems.append(f"{name} is {value!r}, not a number")
            return default
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            self._problems.append(f"{name} is {value!r}, not true or false")
        return bool(value)

    def text(self, name: str) -> str:
        """A string, empty when absent."""
        return str(self._config.get(name) or "")

    def raw(self, name: str) -> Any:
        """Whatever is there, None when nothing is."""
        return self._config.get(name)

    def require(self, name: str, *allowed: object) -> None:
        """The value must be one of ``allowed``, or absent."""
        value = self._config.get(name, _MISSING)
        if value is not _MISSING and value not in allowed:
            self._problems.append(f"{name} = {value!r} is not supported")

    def refuse(self, message: str) -> None:
        """Add a problem."""
        self._problems.append(message)

    def finish(self) -> None:
        """Raise ``unsupported_checkpoint`` with all problems, if there are any."""
        if self._problems:
            raise CheckpointError("; ".join(self._problems), code="unsupported_checkpoint")

    def _value(self, name: str, default: object) -> object:
        value = self._config.get(name)
        return default if value is None else value


def finished(fields: Fields, read: Callable[[Fields], StackConfig]) -> StackConfig:
    """What ``read`` makes of the fields, once nothing is wrong with any of them."""
    try:
        config = read(fields)
    except InvalidInputError as error:  # sizes that do not fit one another, or stand for bad ones
        fields.refuse(error.message)
        fields.finish()
        raise
    fields.finish()
    return config
