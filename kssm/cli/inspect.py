"""``kssm inspect``: what a checkpoint holds."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from kssm.forecast.forecaster import SignalForecaster


def inspect(
    checkpoint: Annotated[str, typer.Argument(help="A shipped model's name, or a folder.")],
) -> None:
    """Describe a checkpoint: architecture, parameters, and the state a row carries."""
    from kssm.forecast import pretrained

    forecaster = pretrained.load(checkpoint)
    console = Console()
    console.print(_overview(checkpoint, forecaster))
    console.print(_state(forecaster))


def _overview(name: str, forecaster: SignalForecaster) -> Table:
    table = Table(title=name, show_header=False, title_justify="left")
    for field, value in _facts(forecaster).items():
        table.add_row(field, value)
    return table


def _facts(forecaster: SignalForecaster) -> dict[str, str]:
    parameters = list(forecaster.parameters())
    dtypes = Counter(str(p.dtype).removeprefix("torch.") for p in parameters)
    facts = {
        "parameters": f"{sum(p.numel() for p in parameters):,}",
        "dtypes": ", ".join(f"{dtype} x{count}" for dtype, count in dtypes.items()),
        "state a row": f"{state_bytes(forecaster):,} bytes",
        "fingerprint": forecaster.fingerprint,
    }
    return facts | _flatten(dataclasses.asdict(forecaster.config))


def _flatten(config: dict[str, object], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = str(value)
    return flat


def _state(forecaster: SignalForecaster) -> Table:
    table = Table(title="state of one row", title_justify="left")
    for heading in ("entry", "shape", "dtype"):
        table.add_column(heading)
    table.add_column("bytes", justify="right")
    for name, (shape, dtype) in forecaster.state_spec().items():
        size = math.prod(shape) * dtype.itemsize
        table.add_row(name, str(tuple(shape)), str(dtype).removeprefix("torch."), f"{size:,}")
    return table


def state_bytes(forecaster: SignalForecaster) -> int:
    """Bytes that one row of ``forecaster`` carries from one token to the next."""
    return sum(
        math.prod(shape) * dtype.itemsize for shape, dtype in forecaster.state_spec().values()
    )
