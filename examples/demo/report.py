"""The summary: what was forecast, how well, how fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from examples.demo.scores import Score, Track
from examples.demo.view import percent
from kssm_client.display import number

EXPLANATION = (
    "loss: mean over all steps ahead of twice the pinball loss, an estimate of the CRPS; for a "
    "naive forecast, which is one number, it is the absolute error. Naive forecasts: the last "
    "value, or the value a day before. skill: the share of the naive forecast's loss that is "
    "saved; 0% is no better, 100% perfect. +24 h, +2 s: mean absolute error of the median at "
    "the last step.\n"
)


@dataclass(frozen=True, slots=True)
class Part:
    """One session of the demonstration. ``label`` names the time of a frame."""

    title: str
    names: Sequence[str]
    units: Sequence[str]
    lead: str
    track: Track
    label: Callable[[int], str]


@dataclass(frozen=True, slots=True)
class Speed:
    """Round trips (s) with one frame under way, and frames a second with many."""

    latencies: Sequence[float]
    frames: int
    seconds: float


def show(console: Console, parts: Sequence[Part], speed: Speed) -> None:
    """Print all of it."""
    for part in parts:
        console.print(_skill_table(part))
        console.print(_surprise_line(part), highlight=False)
        console.print()
    console.print(EXPLANATION, style="dim", highlight=False)
    console.print(_speed_table(speed))
    console.print(_verdict(parts, speed), highlight=False)


def _skill_table(part: Part) -> Table:
    seasonal = any(score.seasonal_error is not None for score in _scores(part))
    table = _table(f"How well: {part.title}")
    table.add_column("\nsignal", no_wrap=True)
    for heading in _headings(part, seasonal=seasonal):
        style = "bold" if heading.startswith("skill") else ""
        table.add_column(heading, justify="right", style=style, no_wrap=True)
    for channel, name in enumerate(part.names):
        score = part.track.score(channel)
        if score is not None:
            cells = _cells(score, seasonal=seasonal)
            table.add_row(f"{name} ({part.units[channel]})", *cells)
    return table


def _headings(part: Part, *, seasonal: bool) -> list[str]:
    rivals = ["last", "day"] if seasonal else ["last"]
    error = f"+{part.lead}"
    return [
        "loss\nours",
        *(f"loss\n{rival}" for rival in rivals),
        f"{error}\nours",
        f"{error}\nlast",
        *(f"skill\nto {rival}" for rival in rivals),
        "in 80%\nrange",
    ]


def _cells(score: Score, *, seasonal: bool) -> list[str]:
    """One row: losses, errors at the end of the horizon, skills, coverage."""
    losses = [score.loss, score.naive_error]
    errors = [score.error_at_end, score.naive_error_at_end]
    skills = [score.skill(score.naive_error)]
    if seasonal and score.seasonal_error is not None:
        losses.append(score.seasonal_error)
        skills.append(score.skill(score.seasonal_error))
    numbers = [_short(value) for value in (*losses, *errors)]
    return [*numbers, *(percent(skill) for skill in skills), f"{score.coverage:.0%}"]


def _surprise_line(part: Part) -> str:
    """The most surprising sample, with what had been expected of it."""
    scored = [
        (anomaly.score, -index, channel)
        for index, forecast in enumerate(part.track.forecasts)
        for channel, anomaly in enumerate(forecast.anomalies)
        if index > part.track.warm_up and anomaly.score is not None
    ]
    if not scored:
        return "No sample could be scored for surprise."
    score, negative, channel = max(scored)
    index = -negative
    before = part.track.forecasts[index - 1]
    low, high = (bound[channel, 0] for bound in before.interval(0.8))
    first = len(part.track.samples) - len(part.track.forecasts)
    value = number(part.track.samples[first + index, channel])
    return (
        f"Most surprising: {part.names[channel]} at {part.label(index)}: {value} "
        f"{part.units[channel]}, where {number(low)} … {number(high)} was expected "
        f"({_odds(score)})."
    )


def _odds(score: float) -> str:
    return "rarer than one in a million" if score > 6 else f"one in {10**score:,.0f}"


def _speed_table(speed: Speed) -> Table:
    table = _table("How fast: from a frame sent to its forecast received")
    for name in ("p50", "p90", "p99", "largest"):
        table.add_column(name, justify="right")
    table.add_column("pipelined", justify="right")
    percentiles = np.percentile(np.array(speed.latencies) * 1e3, [50, 90, 99, 100])
    rate = f"{speed.frames / speed.seconds:,.0f} frames/s"
    table.add_row(*(f"{value:.1f} ms" for value in percentiles), rate)
    return table


def _table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _verdict(parts: Sequence[Part], speed: Speed) -> str:
    saved = [
        skill
        for part in parts
        for score in _scores(part)
        if (skill := score.skill(score.naive_error)) is not None
    ]
    better = sum(skill > 0 for skill in saved)
    frames = sum(len(part.track.forecasts) for part in parts)
    middle = float(np.median(np.array(speed.latencies))) * 1e3
    return (
        f"{frames} frames, {frames} forecasts; better than the last value for {better} of "
        f"{len(saved)} signals; half of the answers within {middle:.1f} ms."
    )


def _scores(part: Part) -> list[Score]:
    scores = (part.track.score(channel) for channel in range(len(part.names)))
    return [score for score in scores if score is not None]
