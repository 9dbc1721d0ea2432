"""The two streams of the demonstration."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager

import numpy as np
from rich.console import Console
from rich.live import Live

from examples.demo.recorded import Recording
from examples.demo.report import Part
from examples.demo.scores import FloatArray, Track
from examples.demo.view import View
from kssm_client import AsyncClient
from kssm_client.machine import MACHINE_SIGNALS, MachineSignals

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
RATE = 10.0
LIVE_HORIZON = 20
LIVE_WARM_UP = 30
DAY = 24
PLAIN_LINES = 10
WIDE = 120

Show = Callable[[Track, str], None]


async def recorded(
    client: AsyncClient, recording: Recording, console: Console
) -> tuple[Part, float]:
    """Send the history as a prompt, the rest frame by frame, pipelined; and how long it took."""
    past, rest = np.split(recording.values, [recording.history])
    track = Track(past, DAY, season=DAY)
    units = ["°C"] * len(recording.channels)
    session = await client.create_session(
        channels=len(recording.channels),
        horizon=DAY,
        quantiles=LEVELS,
        prompt=past,
        sample_interval=3600.0,
    )
    view = View(recording.channels, units, "24 h", wide=console.width >= WIDE)
    started = time.perf_counter()
    async with _shown(console, view, len(rest)) as show:
        async for forecast in session.stream(rest):
            track.add(rest[forecast.seq], forecast)
            when = recording.time(recording.history + forecast.seq)
            show(track, f"New York, {when:%d %B %Y %H:%M} UTC")
    seconds = time.perf_counter() - started
    await session.close()

    def label(index: int) -> str:
        return f"{recording.time(recording.history + index):%d %B %Y %H:%M} UTC"

    title = "temperatures at New York's airports, hourly, 24 h ahead"
    return Part(title, recording.channels, units, "24 h", track, label), seconds


async def live(client: AsyncClient, seconds: float, console: Console) -> tuple[Part, list[float]]:
    """Sample this machine ten times a second; every frame waits for its forecast."""
    names, units = list(MACHINE_SIGNALS), list(MACHINE_SIGNALS.values())
    track = Track(np.empty((0, len(names))), LIVE_HORIZON, warm_up=LIVE_WARM_UP)
    session = await client.create_session(
        channels=len(names), horizon=LIVE_HORIZON, quantiles=LEVELS, sample_interval=1.0 / RATE
    )
    view = View(names, units, f"{LIVE_HORIZON / RATE:g} s", wide=console.width >= WIDE)
    latencies: list[float] = []
    count = round(seconds * RATE)
    async with _shown(console, view, count) as show:
        async for sample in _samples(names, count):
            sent = time.perf_counter()
            forecast = await session.send(sample)
            latencies.append(time.perf_counter() - sent)
            track.add(sample, forecast)
            show(track, f"This machine, {len(latencies) / RATE:.1f} s of {seconds:g} s")
    await session.close()
    title = f"this machine, ten times a second, {LIVE_HORIZON / RATE:g} s ahead"
    lead = f"{LIVE_HORIZON / RATE:g} s"
    part = Part(title, names, units, lead, track, lambda index: f"{index / RATE:.1f} s")
    return part, latencies


async def _samples(names: list[str], count: int) -> AsyncGenerator[FloatArray, None]:
    signals = MachineSignals()
    due = time.monotonic()
    for _ in range(count):
        due += 1.0 / RATE
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        values = signals.read()
        yield np.array([values[name] for name in names])


@asynccontextmanager
async def _shown(console: Console, view: View, count: int) -> AsyncGenerator[Show, None]:
    """A function that shows a frame: in a live table, or now and then as a line."""
    if not console.is_terminal:
        due = _every(count)

        def line(track: Track, title: str) -> None:
            if next(due):
                console.print(f"{title}: {view.line(track)}", soft_wrap=True, highlight=False)

        yield line
        return
    with Live(console=console, auto_refresh=False) as screen:
        last = 0.0

        def table(track: Track, title: str) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last > 0.2 or len(track.forecasts) == count:
                last = now
                screen.update(view.table(track, title), refresh=True)

        yield table


def _every(count: int) -> Iterator[bool]:
    """True for about ten of ``count`` frames, the last among them."""
    step = max(1, count // PLAIN_LINES)
    index = 0
    while True:
        index += 1
        yield index % step == 0 or index == count
