"""Step and prefill of the forecaster on one core: compiled, in torch, and the machine's limits.

``python -m benchmarks.cpu`` measures all in turns in one process and ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from benchmarks import cpu_prefill, cpu_resolutions, cpu_sizes
from benchmarks.cpu_sizes import packed_bytes, step_of
from benchmarks.machine import Machine
from benchmarks.medians import medians
from kssm.forecast import ForecasterConfig, SignalForecaster, pretrained
from kssm.forecast.native import NativeModel, library
from kssm.quantization import WeightFormat, parse_format, quantize

RESOLVED = (1, 16, 256)
"""Batch sizes whose steps are also measured at one resolution."""

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)
PROMPTS = ("1x16", "1x64", "1x512", "16x32", "16x512")


@dataclass(frozen=True)
class Options:
    """``seconds`` of measuring a batch size or shape; ``candidates``: also what was not chosen."""

    model: str | None = None
    weights: WeightFormat | None = None
    sizes: tuple[str, ...] = ()
    batches: tuple[int, ...] = BATCHES
    prompts: tuple[tuple[int, int], ...] = ()
    seconds: float = 4.0
    threads: int = 1
    candidates: bool = False


@dataclass(frozen=True)
class Row:
    """Medians in microseconds of one batch size; ``read``: of reading all packed weights once."""

    rows: int
    native: float
    torch: float
    read: float

    @property
    def speedup(self) -> float:
        """Torch's time to the compiled step's."""
        return self.torch / self.native

    @property
    def share(self) -> float:
        """Of the memory limit: the time to read the weights to the step's."""
        return self.read / self.native


@dataclass(frozen=True)
class Candidate:
    """Median of one row in microseconds, and seconds until the first result."""

    name: str
    step: float
    start: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    model = _model(options.model, options.weights)
    if library.load() is None:
        raise SystemExit("there is no compiled step on this machine")
    sizes = cpu_sizes.measure(options.sizes, options.seconds)
    with torch.inference_mode():
        machine = Machine()
        rows = [_measure(model, machine, count, options.seconds) for count in options.batches]
        prompts = cpu_prefill.measure(model, options.prompts, options.seconds)
        resolved = [rows for rows in RESOLVED if rows in options.batches]
        costs = cpu_resolutions.measure(model, resolved, options.seconds)
        others = _candidates(model, options.seconds) if options.candidates else []
    cpu_sizes.print_sizes(sizes)
    _print(rows, prompts, others)
    cpu_resolutions.show(costs)
    line = _line(model, options, rows, prompts, others)
    named = [{**asdict(size), "of_limit": round(size.of_limit, 3)} for size in sizes]
    more = [{**asdict(c), "ratio": c.ratio, "ratio_apart": c.ratio_apart} for c in costs]
    print(json.dumps(line | {"sizes": named, "resolutions": more}))


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="checkpoint (default: random weights, default sizes)")
    parser.add_argument("--weights", type=parse_format, help="format (default: as stored)")
    parser.add_argument("--sizes", nargs="*", choices=cpu_sizes.SIZES, default=["1M", "3.3M"])
    parser.add_argument("--batches", type=int, nargs="*", default=BATCHES)
    parser.add_argument("--prompts", type=_shape, nargs="*", default=list(map(_shape, PROMPTS)))
    parser.add_argument("--seconds", type=float, default=4.0, help="of measuring a batch size")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--candidates", action="store_true", help="what was not chosen, too")
    found = parser.parse_args(arguments)
    shapes = (tuple(found.sizes), tuple(found.batches), tuple(found.prompts))
    rest = (found.seconds, found.threads, found.candidates)
    return Options(found.model, found.weights, *shapes, *rest)


def _shape(text: str) -> tuple[int, int]:
    """``rows``x``tokens``."""
    rows, tokens = map(int, text.split("x"))
    return rows, tokens


def _model(name: str | None, weights: WeightFormat | None) -> SignalForecaster:
    if name is not None:
        return pretrained.load(name, weights=weights)
    torch.manual_seed(0)
    model = SignalForecaster(ForecasterConfig()).eval().requires_grad_(False)
    quantize(model, weights or "float32")
    model.native.hold()
    return model


def _measure(model: SignalForecaster, machine: Machine, count: int, seconds: float) -> Row:
    arena, slots = model.initial_state(count + 1), torch.randperm(count) + 1
    values, dt = torch.randn(count).double(), torch.ones(count).double()
    packed = torch.ones(packed_bytes(model), dtype=torch.uint8)
    times = medians(
        {
            "native": step_of(model, count),
            "torch": lambda: model.step_torch_(values, arena, slots, dt),
            "read": lambda: machine.read(packed),
        },
        seconds,
    )
    return Row(count, **{name: round(value, 1) for name, value in times.items()})


def _weights(model: SignalForecaster) -> int:
    return sum(tensor.numel() for tensor in model.state_dict().values())


def _candidates(model: SignalForecaster, seconds: float) -> list[Candidate]:
    from benchmarks import cpu_candidates

    features = torch.randn(1, 9)
    makers: dict[str, Callable[[SignalForecaster], Callable[[Tensor], object]]] = {
        "torch, fewer operations": cpu_candidates.LeanStep,
        "torch.compile": cpu_candidates.torch_compiled,
    }
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnxscript"):
        makers["onnxruntime"] = cpu_candidates.onnx_step
    if importlib.util.find_spec("numba"):
        makers["numba"] = cpu_candidates.numba_step
    starts: dict[str, float] = {"compiled C": _start_native(model)}
    actions = {"compiled C": step_of(model)}
    for name, make in makers.items():
        start = time.perf_counter()
        step = make(model)
        step(features)
        starts[name] = time.perf_counter() - start
        actions[name] = lambda step=step: step(features)
    times = medians(actions, seconds)
    return [Candidate(n, round(times[n], 1), round(starts[n], 3)) for n in actions]


def _start_native(model: SignalForecaster) -> float:
    """Seconds to pack the weights and run the first step with a library that is there."""
    model.native = NativeModel()
    start = time.perf_counter()
    step_of(model)()
    return time.perf_counter() - start


def _print(
    rows: Sequence[Row], prompts: Sequence[cpu_prefill.Prompts], candidates: Sequence[Candidate]
) -> None:
    print(f"{'rows':>5} {'compiled µs':>12} {'torch µs':>10} {'x torch':>8} {'of limit':>9}")
    for row in rows:
        line = f"{row.rows:5d} {row.native:12,.0f} {row.torch:10,.0f} {row.speedup:8.1f}"
        print(f"{line} {row.share:9.0%}")
    print(f"{'prompt':>9} {'compiled/s':>10} {'torch/s':>8} {'x torch':>8} {'of peak':>8}")
    for p in prompts:
        line = f"{p.rows:4d}x{p.tokens:<4d} {p.native:10,.0f} {p.torch:8,.0f}"
        print(f"{line} {p.speedup:8.1f} {p.of_peak:8.0%} ({p.gflops:.0f} GFLOP/s)")
    for candidate in candidates:
        print(f"{candidate.name:>26} {candidate.step:9,.0f} µs, start {candidate.start:.2f} s")


def _line(
    model: SignalForecaster,
    options: Options,
    rows: Sequence[Row],
    prompts: Sequence[cpu_prefill.Prompts],
    candidates: Sequence[Candidate],
) -> dict[str, object]:
    ratios = [{"speedup": round(r.speedup, 2), "of_limit": round(r.share, 3)} for r in rows]
    return {
        "benchmark": "cpu",
        "options": asdict(options),
        "weights": _weights(model),
        "packed_bytes": packed_bytes(model),
        "variants": library.usable_variants(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "steps": [{**asdict(r), **more} for r, more in zip(rows, ratios, strict=True)],
        "prefill": [{**asdict(p), "speedup": round(p.speedup, 2)} for p in prompts],
        "candidates": [asdict(candidate) for candidate in candidates],
    }


if __name__ == "__main__":
    main()
