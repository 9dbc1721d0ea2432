"""Frames a second through the engine, and how long one session waits for its forecast.

    python -m benchmarks.engine [--device cuda] [--rows 1 1024 8192 65536] [--save]

Every session sends its next frame when it has the answer to its last one; all of them do so at
once. Rows are spread over at most 8,192 sessions of ``--channels`` channels: what a session costs
on the host is paid once for so many rows. The time includes validation, queues, upload, step,
download and futures; with ``--forecast`` also a forecast of 24 samples at three levels for every
row.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.report import Row, finish, table
from kssm.device import resolve_device
from kssm.forecast import pretrained
from kssm.runtime import Engine, EngineConfig
from kssm.runtime.collector import relax_collector

MOST_SESSIONS = 8192


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="kssm-signal-base")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 1024, 8192, 65536])
    parser.add_argument("--channels", type=int, nargs="+", default=[64, 1])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--forecast", action="store_true")
    parser.add_argument("--save", action="store_true", help="keep the line in benchmarks/results/")
    options = parser.parse_args(arguments)
    device = torch.device(resolve_device(options.device))
    largest = max(options.rows)
    cases = dict.fromkeys((n, min(width, n)) for width in options.channels for n in options.rows)
    config = EngineConfig(
        max_rows=max(largest, 256),
        initial_rows=largest,
        max_pending=4 * max(largest, 256),
        graph_rows=max(largest, 1) if device.type == "cuda" else 1,
    )
    model = pretrained.load(options.model, device)
    relax_collector()  # as ``kssm serve`` does
    with Engine(model, config, device) as engine:
        rows = [
            measured(engine, count, width, options.seconds, options.forecast)
            for count, width in cases
            if count // width <= MOST_SESSIONS
        ]
    print(table(rows))
    finish("engine", device, rows, save=options.save)


def measured(engine: Engine, rows: int, width: int, seconds: float, forecast: bool) -> Row:
    """Rounds of one frame for every session, for some seconds."""
    opened = [engine.open(width) for _ in range(rows // width)]
    keys = [future.result() for future in opened]
    frames = np.random.default_rng(0).normal(50.0, 3.0, (64, 1, width))
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 2 * len(frames):
        start = time.perf_counter()
        frame = frames[len(times) % len(frames)]
        sent = [engine.append(key, frame, want_forecast=forecast) for key in keys]
        for future in sent:
            future.result()
        times.append(time.perf_counter() - start)
    for released in [engine.release(key) for key in keys]:
        released.result()
    half = sorted(times[len(times) // 2 :])
    median = statistics.median(half)
    return {
        "rows": rows,
        "sessions": len(keys),
        "channels": width,
        "forecast": forecast,
        "round_ms": 1e3 * median,
        "round_p99_ms": 1e3 * half[int(0.99 * (len(half) - 1))],
        "samples_per_s": round(rows / median),
    }


if __name__ == "__main__":
    main()
