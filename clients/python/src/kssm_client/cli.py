"""``kssm-client``: stream a source to a server, or forecast a file."""

from __future__ import annotations

import asyncio
import csv
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, NoReturn, TextIO

import typer
from rich.console import Console
from rich.live import Live

from kssm_client.address import DEFAULT_URL
from kssm_client.aio import connect
from kssm_client.core import DEFAULT_WINDOW
from kssm_client.display import StreamView
from kssm_client.errors import KSSMClientError, SourceError
from kssm_client.rest import RestClient
from kssm_client.session import AsyncSession
from kssm_client.sources import Source, open_source, read_csv
from kssm_client.types import Encoding, FloatArray, Forecast, SeriesForecast

app = typer.Typer(
    help="Stream signals to a KSSM server and see the forecast after every frame.",
    no_args_is_help=True,
    add_completion=False,
)

Url = Annotated[str, typer.Option(help="The server.", envvar="KSSMCLIENT_URL")]
ApiKey = Annotated[str | None, typer.Option(help="The API key.", envvar="KSSMCLIENT_API_KEY")]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", help="A CSV column, by name or number; repeat for several."),
]
Horizon = Annotated[int, typer.Option(min=1, help="Samples ahead.")]
Quantiles = Annotated[
    str, typer.Option(help="Quantile levels between 0 and 1, separated by commas.")
]


@dataclass(frozen=True, slots=True)
class _Plan:
    url: str
    api_key: str | None
    horizon: int
    levels: tuple[float, ...]
    encoding: Encoding
    limit: int | None
    live: bool


@app.command()
def stream(
    source: Annotated[str, typer.Argument(help="FILE.csv, FILE.wav, -, or psutil:cpu,memory,…")],
    url: Url = DEFAULT_URL,
    column: Columns = None,
    rate: Annotated[float | None, typer.Option(help="Samples a second.")] = None,
    horizon: Horizon = 24,
    quantiles: Quantiles = "0.1,0.5,0.9",
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many frames.")] = None,
    json_frames: Annotated[
        bool, typer.Option("--json", help="Send JSON instead of float32 messages.")
    ] = False,
    plain: Annotated[bool, typer.Option(help="A line a frame, also on a terminal.")] = False,
    api_key: ApiKey = None,
) -> None:
    """Send a source frame by frame and show the forecast after each."""
    console = Console()
    plan = _Plan(
        url=url,
        api_key=api_key,
        horizon=horizon,
        levels=_levels(quantiles),
        encoding="json" if json_frames else "binary",
        limit=limit,
        live=console.is_terminal and not plain,
    )
    try:
        opened = open_source(source, columns=column or (), rate=rate)
        asyncio.run(_stream(opened, plan, console))
    except KSSMClientError as error:
        _fail(error)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@app.command()
def forecast(
    file: Annotated[Path, typer.Argument(help="A CSV file, one sample a line.")],
    horizon: Horizon,
    url: Url = DEFAULT_URL,
    column: Columns = None,
    quantiles: Quantiles = "0.1,0.5,0.9",
    output: Annotated[
        Path | None, typer.Option(help="A CSV file to write instead of printing.")
    ] = None,
    api_key: ApiKey = None,
) -> None:
    """Forecast the columns of a CSV file; the result is CSV."""
    levels = _levels(quantiles)
    try:
        names, table = read_csv(file, column or ())
        series = {name: table[:, index] for index, name in enumerate(names)}
        with RestClient(url, api_key=api_key) as client:
            forecasts = client.forecast(series, horizon, quantiles=levels)
    except KSSMClientError as error:
        _fail(error)
    if output is None:
        _write_csv(sys.stdout, forecasts)
        return
    try:
        with output.open("w", newline="", encoding="utf-8") as target:
            _write_csv(target, forecasts)
    except OSError as error:
        _fail(SourceError(f"cannot write {output}: {error}", "cannot_write"))


def _levels(text: str) -> tuple[float, ...]:
    try:
        levels = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError as error:
        raise typer.BadParameter(f"not a list of numbers: {text}") from error
    if not all(0.0 < level < 1.0 for level in levels):
        raise typer.BadParameter(f"quantiles lie between 0 and 1: {text}")
    return levels


def _fail(error: KSSMClientError) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False)
    raise typer.Exit(1)


async def _stream(source: Source, plan: _Plan, console: Console) -> None:
    async with connect(plan.url, api_key=plan.api_key) as client:
        session = await client.create_session(
            channels=len(source.channels),
            horizon=plan.horizon,
            quantiles=plan.levels,
            sample_interval=source.interval,
            encoding=plan.encoding,
        )
        try:
            await _show(session, source, plan, console)
        finally:
            await session.close()


async def _show(session: AsyncSession, source: Source, plan: _Plan, console: Console) -> None:
    view = StreamView(source.channels)
    sent: deque[tuple[FloatArray, float]] = deque()
    frames = _noted(islice(source.frames, plan.limit), sent)
    if not plan.live:
        async for result in session.stream(frames, window=DEFAULT_WINDOW):
            _update(view, sent, result)
            console.print(view.line(), soft_wrap=True, highlight=False, markup=False)
        return
    with Live(console=console, refresh_per_second=10) as live:
        async for result in session.stream(frames, window=DEFAULT_WINDOW):
            latency = _update(view, sent, result)
            title = f"{session.info.model} · frame {result.seq} · {latency * 1e3:.1f} ms"
            live.update(view.table(title))


def _noted(
    frames: Iterator[FloatArray], sent: deque[tuple[FloatArray, float]]
) -> Iterator[FloatArray]:
    """The same frames; each is remembered with the time it left."""
    for frame in frames:
        sent.append((frame, time.perf_counter()))
        yield frame


def _update(view: StreamView, sent: deque[tuple[FloatArray, float]], result: Forecast) -> float:
    frame, left = sent.popleft()
    latency = time.perf_counter() - left
    view.update(frame, result, latency)
    return latency


def _write_csv(target: TextIO, forecasts: list[SeriesForecast]) -> None:
    levels = forecasts[0].levels if forecasts else ()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(["series", "step", "mean", *(f"q{level:g}" for level in levels)])
    for result in forecasts:
        for step, mean in enumerate(result.mean):
            quantiles = (f"{value:.9g}" for value in result.values[:, step])
            writer.writerow([result.id, step + 1, f"{mean:.9g}", *quantiles])


def main() -> None:
    """Entry point of ``python -m kssm_client``."""
    app()
