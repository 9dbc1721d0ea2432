"""Which implementation of a scan does the work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from kssm.errors import InvalidInputError

Backend = Literal["reference", "chunked", "triton"]

_SHORT = 4
"""Up to this many tokens the plain loop costs less than the chunked layout."""


def choose(
    asked: Backend | None, tokens: int, *, possible: bool, worth_it: Callable[[], bool]
) -> Backend:
    """The backend asked for, or the fastest for so many ``tokens``.

    Args:
        possible: whether the compiled kernels can do the work at all.
        worth_it: whether they are the choice where nobody asked for them; called only if possible.

    Raises:
        InvalidInputError: codes ``unknown_backend``, ``backend_unavailable``.
    """
    if asked is None:
        if possible and worth_it():
            return "triton"
        return "chunked" if tokens > _SHORT else "reference"
    if asked not in ("reference", "chunked", "triton"):
        raise InvalidInputError(f"unknown backend {asked!r}", code="unknown_backend")
    if asked == "triton" and not possible:
        message = "triton is not installed, or does not take this dtype or these sizes"
        raise InvalidInputError(message, code="backend_unavailable")
    return asked
