"""Every model at equal parameters: state, step, prefill and training, in one run.

    python -m benchmarks.models [--size base] [--save]

Prints a Markdown table and one line of JSON. On a GPU step, prefill and training are CUDA graphs,
so that they show the device's time. Steps compute in fp32 (TF32 products), prefill and training
under bf16 autocast with fp32 weights and states. Training is forward and backward, without an
optimizer, and with --compile also with every block through torch.compile.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from benchmarks.report import Row, finish
from kssm.models import MODELS, build
from kssm.models.stack import Stack

CLAIMS = {"mamba2": 100.0, "rwkv6": 50.0, "s4d": 80.0}
"""Microseconds a step that the model zoo which seeded this project stated, sizes unknown."""


@dataclass(frozen=True)
class Options:
    """What to measure: ``rows`` of a step, ``lengths`` of a prompt, a training batch, repeats."""

    models: tuple[str, ...] = tuple(MODELS)
    size: str = "base"
    rows: tuple[int, ...] = (1, 1024)
    lengths: tuple[int, ...] = (1024, 4096, 16384, 65536)
    batch: tuple[int, int] = (16, 2048)
    repeats: int = 7
    compiled: bool = False


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--size", default="base")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 1024])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384, 65536])
    parser.add_argument("--batch", type=int, nargs=2, default=(16, 2048))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="torch.compile for training")
    parser.add_argument("--save", action="store_true", help="keep the line in benchmarks/results/")
    given = parser.parse_args(arguments)
    batch = (given.batch[0], given.batch[1])
    options = Options(
        tuple(given.models),
        given.size,
        tuple(given.rows),
        tuple(given.lengths),
        batch,
        given.repeats,
        given.compile,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    rows = [measure(name, options, device) for name in options.models]
    print(markdown(rows))
    finish("models", device, rows, save=given.save)


def measure(name: str, options: Options, device: torch.device) -> Row:
    """One line of the table."""
    torch.manual_seed(0)
    model = build(name, options.size).to(device).eval()
    spec = model.state_spec().values()
    row: Row = {
        "model": name,
        "size": options.size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "state_bytes": sum(math.prod(shape) * dtype.itemsize for shape, dtype in spec),
        "claimed_step_us": CLAIMS.get(name),
    }
    for rows in options.rows:
        row[f"step_us_{rows}"] = 1e3 * step_ms(model, rows, device, options.repeats)
    for length in options.lengths:
        row[f"prefill_ms_{length}"] = prefill_ms(model, length, device, options.repeats)
    row["training_batch"] = "x".join(map(str, options.batch))
    row["training_tokens_per_s"] = training(model, options, device)
    if options.compiled:
        row["compiled_tokens_per_s"] = training(compiled(model), options, device)
    return row


def step_ms(model: Stack, rows: int, device: torch.device, repeats: int) -> float:
    """One token for each of ``rows`` rows that have lived long: attention's rings are full."""
    with torch.inference_mode():
        arena = model.initial_state(rows + 1)
        for name, entry in arena.items():
            if name.endswith(".count"):
                entry.fill_(1e6)
        slots = torch.arange(1, rows + 1, device=device)
        x = torch.randn(rows, model.d_model, device=device)
        return median_ms(captured(lambda: model.step_(x, arena, slots), device), device, repeats)


def prefill_ms(model: Stack, length: int, device: torch.device, repeats: int) -> float:
    """One row's prompt, with a state to continue from."""
    with torch.inference_mode(), autocast(device):
        state = model.initial_state(1)
        x = torch.randn(1, length, model.d_model, device=device)
        run = captured(lambda: model(x, state), device)
        return median_ms(run, device, repeats, queued=2)


def training(model: Stack, options: Options, device: torch.device) -> int:
    """Tokens a second of forward and backward, gradients of all parameters and of the input."""
    x = torch.randn(*options.batch, model.d_model, device=device, requires_grad=True)
    model.train()

    def run() -> None:
        model.zero_grad()
        x.grad = None
        with autocast(device):
            y, _ = model(x)
        y.float().square().mean().backward()

    ms = median_ms(captured(run, device), device, options.repeats, queued=2)
    return round(math.prod(options.batch) / ms * 1e3)


def compiled(model: Stack) -> Stack:
    """``model`` with its blocks compiled: blocks of a kind share their code."""
    for block in model.blocks:
        block.compile(dynamic=False)
    return model


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """Bf16 products on a GPU, fp32 elsewhere."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def captured(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """``run`` as one CUDA graph; itself without a GPU."""
    if device.type != "cuda":
        return run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def median_ms(
    run: Callable[[], object], device: torch.device, repeats: int, queued: int = 10
) -> float:
    """Median over ``repeats`` of the mean of ``queued`` runs, after two to warm up."""
    for _ in range(2):
        run()
    timer = cuda_ms if device.type == "cuda" else _wall_ms
    return statistics.median(timer(run, queued) for _ in range(repeats))


def cuda_ms(run: Callable[[], object], queued: int) -> float:
    """Mean time on the device of ``queued`` runs, one behind the other."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(queued):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / queued


def _wall_ms(run: Callable[[], object], queued: int) -> float:
    start = time.perf_counter()
    for _ in range(queued):
        run()
    return (time.perf_counter() - start) * 1e3 / queued


def markdown(rows: Sequence[Row]) -> str:
    """The measured rows as a table."""
    shown = [key for key in rows[0] if key not in ("size", "training_batch")]
    lines = [shown, ["---"] * len(shown)]
    lines += [[_cell(row[key]) for key in shown] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    main()
