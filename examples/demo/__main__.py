"""``python -m examples.demo``: start the server, stream to it, say how well it did."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import ExitStack
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from examples.demo import fault, report, stream
from examples.demo.recorded import STREAM_HOURS, new_york_temperatures
from examples.demo.server import ServerFailedError, serving
from kssm_client import KSSMClientError, connect


def main(
    seconds: Annotated[float, typer.Option(min=5, help="How long to sample this machine.")] = 20,
    model: Annotated[str | None, typer.Option(help="A shipped model's name, or a folder.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
) -> None:
    """Forecast this machine's load and a recorded series, and measure how well and how fast."""
    console = Console()
    options = {"--model": model, "--device": device}
    arguments = [part for name, value in options.items() if value for part in (name, value)]
    began = time.monotonic()
    try:
        with ExitStack() as stack:
            with console.status("Starting the server …"):
                url = stack.enter_context(serving(arguments))
            console.print(f"The server is ready at {url} ({time.monotonic() - began:.1f} s).")
            asyncio.run(demonstrate(url, seconds, console))
    except (ServerFailedError, KSSMClientError, FileNotFoundError) as error:
        console.print(f"The demonstration failed: {error}", style="red", markup=False)
        raise typer.Exit(1) from error
    console.print(f"Done in {time.monotonic() - began:.0f} s.")


async def demonstrate(url: str, seconds: float, console: Console) -> None:
    """The streams over one connection, then the summary. Raises when a forecast is missing."""
    async with connect(url) as client:
        console.rule("A recorded series: a month as prompt, four weeks frame by frame")
        recording = new_york_temperatures()
        past, duration = await stream.recorded(client, recording, console)
        failing = await fault.inject(client, recording)
        console.rule("This machine, live: no history, learnt as it comes")
        now, latencies = await stream.live(client, seconds, console)
    check(past, STREAM_HOURS)
    check(now, round(seconds * stream.RATE))
    console.rule("Summary")
    fault.show(console, failing)
    console.print()
    report.show(console, [past, now], report.Speed(latencies, STREAM_HOURS, duration))


def check(part: report.Part, frames: int) -> None:
    """Raises ServerFailedError unless every frame has a finite forecast."""
    forecasts = part.track.forecasts
    if [forecast.seq for forecast in forecasts] != list(range(frames)):
        raise ServerFailedError(f"{part.title}: forecasts are missing")
    if not all(np.isfinite(forecast.values).all() for forecast in forecasts):
        raise ServerFailedError(f"{part.title}: a forecast is not finite")


if __name__ == "__main__":
    sys.exit(typer.run(main))
