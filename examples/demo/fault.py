"""A sensor is made to fail, and what the anomaly scores say of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rich.console import Console

from examples.demo.recorded import Recording
from examples.demo.scores import FloatArray
from kssm_client import AsyncClient
from kssm_client.display import sparkline

CHANNEL = 2
OFFSET = 6.0
FIRST_HOUR = 19 * 24
BEFORE, AFTER = 24, 48


@dataclass(frozen=True, slots=True)
class Fault:
    """Around a fault's begin, hour by hour: tail probability and surprise [hours, channels].

    ``began`` tells when; the first ``BEFORE`` hours are sound, NaN = no score.
    """

    names: tuple[str, ...]
    began: str
    tail: FloatArray
    surprise: FloatArray


async def inject(client: AsyncClient, recording: Recording) -> Fault:
    """The recorded series up to some days into May, then with one thermometer reading too high."""
    begin = recording.history + FIRST_HOUR
    values = recording.values[: begin + AFTER].copy()
    values[begin:, CHANNEL] += OFFSET
    session = await client.create_session(
        channels=len(recording.channels),
        horizon=1,
        prompt=values[: begin - BEFORE],
        sample_interval=3600.0,
    )
    said = [f.anomalies async for f in session.stream(values[begin - BEFORE :])]
    await session.close()
    tail = np.array([[a.tail_probability for a in frame] for frame in said], dtype=float)
    surprise = np.array([[a.surprise for a in frame] for frame in said], dtype=float)
    return Fault(recording.channels, f"{recording.time(begin):%d %B}", tail, surprise)


def show(console: Console, fault: Fault) -> None:
    """Print what the scores said, a line a channel."""
    console.print(
        f"A fault made on purpose: from {fault.began} on, {fault.names[CHANNEL]}'s thermometer "
        f"reads {OFFSET:g} °C too high. Surprise, {BEFORE} hours before and {AFTER} after:",
        highlight=False,
    )
    low, high = (float(np.nanquantile(fault.surprise, share)) for share in (0.0, 1.0))
    width = max(map(len, fault.names))
    for channel, name in enumerate(fault.names):
        line = fault.surprise[:, channel]
        sound, faulty = np.split(line, [BEFORE])
        console.print(
            f"  {name:{width}} {sparkline(sound, low, high)}|{sparkline(faulty, low, high)} "
            f"{_highest(sound)} → {_highest(faulty)}",
            highlight=False,
            soft_wrap=True,
        )
    console.print(_first(fault), highlight=False)


def _first(fault: Fault) -> str:
    first = fault.tail[BEFORE, CHANNEL]
    if not np.isfinite(first):
        return "The first wrong sample could not be scored."
    return f"The first wrong sample alone: one in {1.0 / first:,.0f}."


def _highest(values: FloatArray) -> str:
    known = values[np.isfinite(values)]
    return f"{known.max():.1f}" if known.size else "-"
