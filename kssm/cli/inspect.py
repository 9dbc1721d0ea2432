"""``kssm inspect``: what a checkpoint holds, and how it is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from torch import Tensor

    from kssm.checkpoint.health import Health
    from kssm.loading import Model
    from kssm.models.spectrum import Spectrum

SHARES = (0.05, 0.5, 0.95)
MOST_CONCERNS = 20


def inspect(
    checkpoint: Annotated[str, typer.Argument(help="A shipped model's name, or a folder.")],
    plot: Annotated[
        Path | None, typer.Option(help="Draw time constants and frequencies into this picture.")
    ] = None,
) -> None:
    """Describe a checkpoint: architecture, parameters, state, memory of its layers, health.

    Reads forecasters, language models and the folders that transformers writes. Weights that are
    not finite are reported, not refused.
    """
    from kssm.checkpoint.health import examine
    from kssm.forecast.pretrained import locate
    from kssm.loading import load_any
    from kssm.models.spectrum import spectra

    folder = locate(checkpoint)
    model = load_any(folder, check_values=False)
    found, conditions = spectra(model.backbone), examine(folder)
    console = Console()
    for table in (
        _overview(checkpoint, model, conditions),
        _state(model),
        _memory(found),
        _health(conditions),
    ):
        console.print(table)
    if plot is not None:
        from kssm.cli.spectrum_plot import draw

        draw(found, checkpoint, plot)
        console.print(f"drawn into {plot}")


def state_bytes(model: Model) -> int:
    """Bytes that one row of ``model`` carries from one token to the next."""
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in model.state_spec().values())


def _overview(name: str, model: Model, conditions: Sequence[Health]) -> Table:
    table = Table(title=name, show_header=False, title_justify="left")
    for field, value in _facts(model, conditions).items():
        table.add_row(field, value)
    return table


def _facts(model: Model, conditions: Sequence[Health]) -> dict[str, str]:
    from kssm.models.registry import name_of

    kinds = Counter(condition.dtype for condition in conditions)
    facts = {
        "kind": type(model).__name__,
        "architecture": name_of(model.config.backbone),
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "stored as": ", ".join(f"{dtype} x{count}" for dtype, count in kinds.items()),
        "state a row": f"{state_bytes(model):,} bytes",
        "fingerprint": model.fingerprint,
    }
    return facts | _flatten(asdict(model.config))


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        elif is_dataclass(value) and not isinstance(value, type):
            flat |= _flatten(asdict(value), f"{prefix}{name}.")
        else:
            flat[prefix + name] = str(value)
    return flat


def _state(model: Model) -> Table:
    table = _table("state of one row", ("entry", "shape", "dtype"), ("bytes",))
    for name, (shape, dtype) in model.state_spec().items():
        size = math.prod(shape) * dtype.itemsize
        table.add_row(name, str(tuple(shape)), str(dtype).removeprefix("torch."), f"{size:,}")
    return table


def _memory(found: Sequence[Spectrum]) -> Table:
    shares = " / ".join(f"{share:.0%}" for share in SHARES)
    table = _table(
        "memory of the layers, for a token of zeros",
        ("layer", "kind"),
        ("modes", f"time constants {shares}", f"cycles a token {shares}", "spectral radius"),
    )
    for index, layer in enumerate(found):
        table.add_row(str(index), layer.kind, *_row(layer))
    return table


def _row(layer: Spectrum) -> tuple[str, str, str, str]:
    if layer.window is not None:
        return "-", f"window of {layer.window:,} tokens", "-", "-"
    if not len(layer.log_radius):
        return "-", "-", "-", "-"
    constants, angles = _shares(layer.time_constants), _shares(layer.angle)
    return f"{len(layer.log_radius):,}", constants, angles, f"{layer.radius:.8f}"


def _shares(values: Tensor) -> str:
    """The values below which 5%, half and 95% of ``values`` lie."""
    ordered = values.sort().values
    places = [round(share * (len(ordered) - 1)) for share in SHARES]
    return " / ".join(f"{float(ordered[place]):.3g}" for place in places)


def _health(conditions: Sequence[Health]) -> Table | str:
    from kssm.checkpoint.health import HUGE

    unsound = [condition for condition in conditions if not condition.sound]
    title = f"health: {len(conditions) - len(unsound)} of {len(conditions)} tensors are sound"
    if not unsound:
        return title
    table = _table(
        title, ("tensor", "shape"), ("not finite", f"beyond {HUGE:,.0f}", "dead rows", "rms")
    )
    for condition in unsound[:MOST_CONCERNS]:
        counts = (condition.non_finite, condition.huge, condition.dead)
        numbers = [f"{count:,}" for count in counts]
        table.add_row(condition.name, str(list(condition.shape)), *numbers, f"{condition.rms:.3g}")
    if len(unsound) > MOST_CONCERNS:
        table.caption = f"and {len(unsound) - MOST_CONCERNS} more"
    return table


def _table(title: str, words: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in words:
        table.add_column(heading)
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table
