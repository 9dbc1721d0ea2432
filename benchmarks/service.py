"""What the service adds to the model: frame to forecast over a WebSocket against a bare step.

Both are measured in one run and on the same core: first the model alone (a step of every row and
the read of its forecast), then a real server in a process of its own, streamed to over loopback
from another core where there is one.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.processes import pinned, server, split_cores
from benchmarks.streaming import time_frames
from kssm.forecast import pretrained
from kssm.weight_format import WeightFormat

HORIZON = 24
LEVELS = (0.1, 0.5, 0.9)
WARM_UP_FRAMES = 50


@dataclass(frozen=True)
class Options:
    """``sessions`` streams of ``frames`` frames of one sample each."""

    model: str = pretrained.DEFAULT
    device: str = "cpu"
    sessions: int = 1
    frames: int = 500
    weights: WeightFormat | None = None


@dataclass(frozen=True)
class Timing:
    """Median and 99th percentile in microseconds."""

    p50_us: float
    p99_us: float


@dataclass(frozen=True)
class Report:
    """``model``: a step and a read; ``json`` and ``binary``: frame to forecast."""

    options: Options
    commit: str
    pinned: bool
    model: Timing
    json: Timing
    binary: Timing

    @property
    def ratio(self) -> float:
        """Median over the WebSocket (JSON) to the model's own median."""
        return self.json.p50_us / self.model.p50_us

    @property
    def ratio_binary(self) -> float:
        """The same with binary frames."""
        return self.binary.p50_us / self.model.p50_us

    def as_line(self) -> str:
        """The report as one line of JSON."""
        ratios = {"ratio": round(self.ratio, 3), "ratio_binary": round(self.ratio_binary, 3)}
        return json.dumps({"benchmark": "service", **asdict(self), **ratios})


def run(options: Options) -> Report:
    """Measure the model, then the service around it."""
    measured, others = split_cores()
    frames = _signals(options)
    steps = _measure_model(options, frames, measured)
    arguments = ["--model", options.model, "--device", options.device]
    arguments += ["--weights", options.weights] if options.weights else []
    with server(arguments, measured) as port, pinned(others):
        text = _measure_stream(port, frames, binary=False)
        binary = _measure_stream(port, frames, binary=True)
    model = _timing(steps + _measure_model(options, frames, measured))
    return Report(options, _commit(), bool(measured), model, text, binary)


def _signals(options: Options) -> NDArray[np.float64]:
    """Noisy waves [warm-up + frames, sessions], the same in every run."""
    noise = np.random.default_rng(0)
    time_axis = np.arange(WARM_UP_FRAMES + options.frames)[:, None]
    phase = noise.uniform(0, 2 * np.pi, options.sessions)
    waves = np.sin(2 * np.pi * time_axis / 24 + phase)
    return waves + noise.normal(0, 0.1, waves.shape)


def _measure_model(
    options: Options, frames: NDArray[np.float64], cores: Collection[int]
) -> list[float]:
    """Seconds of each step; done before and after the server, as a machine drifts."""
    with pinned(cores), _one_thread():
        return list(_step_seconds(options, frames))[WARM_UP_FRAMES:]


def _step_seconds(options: Options, frames: NDArray[np.float64]) -> Iterator[float]:
    """Seconds of each step of all rows, with its forecasts brought to the host."""
    forecaster = pretrained.load(options.model, options.device, weights=options.weights)
    arena = forecaster.initial_state(options.sessions + 1)
    slots = torch.arange(1, options.sessions + 1, device=options.device)
    for values in torch.from_numpy(frames):
        start = time.perf_counter()
        forecaster.step_(values.to(options.device), arena, slots)
        rows = {name: entry[slots] for name, entry in arena.items()}
        forecaster.forecast(rows, HORIZON, LEVELS).cpu()
        yield time.perf_counter() - start


@contextmanager
def _one_thread() -> Generator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _measure_stream(port: int, frames: NDArray[np.float64], *, binary: bool) -> Timing:
    streaming = time_frames(port, frames, horizon=HORIZON, levels=LEVELS, binary=binary)
    return _timing(asyncio.run(streaming)[WARM_UP_FRAMES * frames.shape[1] :])


def _timing(seconds: Sequence[float]) -> Timing:
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e6
    return Timing(round(float(p50), 1), round(float(p99), 1))


def _commit() -> str:
    """The checked-out commit, ``unknown`` outside a repository."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    root = Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
