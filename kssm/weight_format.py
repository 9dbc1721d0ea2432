"""The names of weight formats (``kssm.quantization``), without an import of torch."""

from __future__ import annotations

from typing import Final, Literal, get_args

from kssm.errors import InvalidInputError

WeightFormat = Literal["float32", "float16", "bfloat16", "int8"]
FORMATS: Final[tuple[WeightFormat, ...]] = get_args(WeightFormat)


def parse_format(name: str) -> WeightFormat:
    """``name`` if it is a format; raises ``invalid_weights``."""
    if name not in FORMATS:
        known = ", ".join(FORMATS)
        raise InvalidInputError(f"no weight format {name!r}, only {known}", code="invalid_weights")
    return name
