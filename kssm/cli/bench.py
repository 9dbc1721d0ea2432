"""``kssm bench``: measure this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from kssm.cli.forecast import DEFAULT_MODEL
from kssm.errors import InvalidInputError
from kssm.weight_format import parse_format

if TYPE_CHECKING:
    from benchmarks.service import Report

app = typer.Typer(no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure this machine. Each measurement ends with one line of JSON."""


@app.command()
def service(
    sessions: Annotated[int, typer.Option(min=1, help="Streams at the same time.")] = 1,
    frames: Annotated[int, typer.Option(min=1, help="Frames of each stream.")] = 500,
    model: Annotated[str, typer.Option(help="A shipped model, or a folder.")] = DEFAULT_MODEL,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    weights: Annotated[
        str | None, typer.Option(help="float32, float16, bfloat16 or int8 (default: as stored).")
    ] = None,
) -> None:
    """Time a frame's way through a real server against the model's own step, on one core."""
    try:
        from benchmarks.service import Options, run
    except ModuleNotFoundError as error:
        message = "the benchmarks are part of the source tree: run `make bench` in a clone"
        raise InvalidInputError(message, code="missing_dependency") from error
    chosen = None if weights is None else parse_format(weights)
    report = run(Options(model, device, sessions, frames, chosen))
    Console().print(_table(report))
    typer.echo(report.as_line())


def _table(report: Report) -> Table:
    options = report.options
    title = f"{options.model}, {options.device}, {options.sessions} session(s)"
    table = Table(title=title, title_justify="left")
    table.add_column("measured")
    for heading in ("p50 \u00b5s", "p99 \u00b5s", "x the step"):
        table.add_column(heading, justify="right")
    rows = {
        "model: step and forecast": report.model,
        "frame to forecast, JSON": report.json,
        "frame to forecast, binary": report.binary,
    }
    for name, timing in rows.items():
        times = f"{timing.p50_us / report.model.p50_us:.2f}"
        table.add_row(name, f"{timing.p50_us:,.0f}", f"{timing.p99_us:,.0f}", times)
    return table
