"""Tokens a second of generation, by the library and by the engine (``benchmarks.language``).

Every architecture at the size "base" (4.5 M weights and a vocabulary of 32,000), random weights,
greedy. ``limit`` is the time to read weights and states once a token at the copy bandwidth measured
in the same run. The last line is JSON.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time

import numpy as np
import torch

from benchmarks.report import Row, finish, table
from kssm.checkpoint import convert_
from kssm.checkpoint.precision import DTYPES
from kssm.language import LanguageConfig, LanguageModel, Sampling
from kssm.language.rows import LanguageRows
from kssm.models import MODELS
from kssm.models.registry import preset
from kssm.runtime import Engine, EngineConfig

VOCABULARY = 32_000
GREEDY = Sampling(temperature=0)
COPY_BYTES = 1 << 28


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    device = torch.device(arguments.device)
    bandwidth = _copy_bandwidth(device)
    rows = [
        _measure(name, rows, device, arguments, bandwidth)
        for name in arguments.models
        for rows in arguments.rows
    ]
    print(table(rows))
    finish(f"language_{arguments.dtype}", device, rows, save=arguments.save)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--size", default="base")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--save", action="store_true")
    return parser.parse_args()


def _measure(
    name: str, rows: int, device: torch.device, arguments: argparse.Namespace, bandwidth: float
) -> Row:
    torch.manual_seed(0)
    model = LanguageModel(LanguageConfig(preset(name, arguments.size), VOCABULARY)).eval()
    convert_(model, DTYPES[arguments.dtype])
    model.requires_grad_(False).to(device)
    weights = sum(p.nbytes for p in model.parameters())
    state = sum(math.prod(shape) * dtype.itemsize for shape, dtype in model.state_spec().values())
    moved = weights + 2 * rows * state
    step_ms = _step_ms(model, rows, arguments.tokens)
    return {
        "model": name,
        "rows": rows,
        "state_kb": round(state / 1e3),
        "step_ms": round(step_ms, 3),
        "tokens_s": round(1e3 * rows / step_ms),
        "engine_tokens_s": round(_engine_rate(model, rows, device, arguments.tokens)),
        "limit_ms": round(1e3 * moved / bandwidth, 3),
    }


def _step_ms(model: LanguageModel, rows: int, steps: int) -> float:
    """Median time of a batched step with its logits."""
    arena = model.initial_state(rows + 1)
    slots = torch.arange(1, rows + 1, device=model.device)
    times: list[float] = []
    token = torch.ones(rows, dtype=torch.long, device=model.device)
    with torch.inference_mode():
        for _ in range(steps):
            began = time.perf_counter()
            token = model.step_(token, arena, slots).argmax(-1)
            token.tolist()
            times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times[steps // 4 :])


def _engine_rate(model: LanguageModel, rows: int, device: torch.device, tokens: int) -> float:
    """Tokens a second of ``rows`` sessions that generate side by side."""
    config = EngineConfig(max_rows=rows, initial_rows=rows)
    with Engine(LanguageRows(model), config, device) as engine:
        keys = [engine.open(1).result() for _ in range(rows)]
        for key in keys:
            engine.append(key, np.ones((4, 1)), want_forecast=False).result()
        for count in (tokens // 4, tokens):
            began = time.perf_counter()
            futures = [engine.generate(key, count, GREEDY, seed=0) for key in keys]
            for future in futures:
                future.result()
        return rows * tokens / (time.perf_counter() - began)


def _copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.ones(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    times: list[float] = []
    for _ in range(8):
        began = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2 * COPY_BYTES / min(times)


if __name__ == "__main__":
    main()
