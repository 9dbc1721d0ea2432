"""What a request may ask for, beyond its shape."""

from __future__ import annotations

from collections.abc import Sequence

from kssm.errors import InvalidInputError
from service.settings import Settings


def check_query(
    settings: Settings, rows: int, horizon: int, quantiles: Sequence[float]
) -> tuple[float, ...]:
    """The quantile levels in ascending order, if such a forecast of ``rows`` rows may be made.

    Raises ``InvalidInputError`` (`invalid_horizon`, `invalid_quantiles`, `invalid_request`).
    """
    if not 1 <= horizon <= settings.max_horizon:
        message = f"horizon must be from 1 to {settings.max_horizon}"
        raise InvalidInputError(message, code="invalid_horizon")
    if not 1 <= len(quantiles) <= settings.max_quantiles:
        message = f"give 1 to {settings.max_quantiles} quantiles"
        raise InvalidInputError(message, code="invalid_quantiles")
    if len(set(quantiles)) != len(quantiles) or not all(0 < level < 1 for level in quantiles):
        message = "quantiles must be distinct and between 0 and 1"
        raise InvalidInputError(message, code="invalid_quantiles")
    check_size(settings, rows * horizon * len(quantiles))
    return tuple(sorted(quantiles))


def check_size(settings: Settings, values: int) -> None:
    """Raises ``InvalidInputError`` (`invalid_request`) for answers of so many values."""
    if values > settings.max_reply_values:
        message = f"an answer of {values} values is more than {settings.max_reply_values}"
        raise InvalidInputError(message, code="invalid_request")


def check_channels(settings: Settings, channels: int) -> None:
    """Raises ``InvalidInputError`` when a session would have too many channels."""
    limit = min(settings.max_channels, settings.max_rows)
    if channels > limit:
        raise InvalidInputError(f"a session has at most {limit} channels")
