"""Speed of a step, as a share of what copying the same bytes would take.

    python -m benchmarks.step [--save] [--rows 1 1024 8192 65536]

Counted bytes: each row's state read once and written once, weights (of the lines without products:
inputs and outputs) once. Every step is one CUDA graph. ``share_of_copy`` is against the rate of a
large copy, ``share_of_same_copy`` against a copy of just so many bytes. Lines:

- forecaster: a whole shipped model, from samples to forecasts, through the fused kernels
- forecaster, torch: the same through ``step_torch_``
- states of all layers: what the fused kernels for many rows do beside products: windows and states
- recurrence: ``kssm_step_`` of eight layers as wide as the forecaster's
- mamba-ssm: its ``selective_state_update`` at the same width, 16 states a channel (if installed)
- the other models of ``kssm.models``, size base, as they are
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.models import captured, median_ms
from benchmarks.ops_scan import copy_rate
from benchmarks.report import Row, finish, table
from kssm.forecast import SignalForecaster, pretrained
from kssm.forecast.resolutions import at_one_resolution
from kssm.models import MODELS, State, build
from kssm.ops.kssm_scan import ScanParameters, kssm_step_

LAYERS, WIDTH, GROUPS, MODES = 8, 320, 5, 16
SLOW_ROWS = 8192
"""Most rows for what takes much memory or time: the models' torch code."""

Case = tuple[str, Callable[[], object], int]
"""What is measured, the step, its bytes."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 1024, 8192, 65536])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--alone", action="store_true", help="the forecaster, no other model")
    parser.add_argument("--save", action="store_true", help="keep the line in benchmarks/results/")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    copy = copy_rate(device, options.repeats)
    with torch.inference_mode():
        rows = [
            measured(case, count, device, copy, options.repeats)
            for count in options.rows
            for case in cases(count, device, alone=options.alone)
        ]
    print(table(rows))
    finish("step", device, rows, save=options.save)


def measured(case: Case, rows: int, device: torch.device, copy: float, repeats: int) -> Row:
    """One line of the table; ``copy`` in bytes a second."""
    name, run, size = case
    ms = median_ms(captured(run, device), device, repeats)
    source = torch.empty(size // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    same = median_ms(captured(lambda: target.copy_(source), device), device, repeats)
    return {
        "step": name,
        "rows": rows,
        "us": 1e3 * ms,
        "mbytes": size / 1e6,
        "share_of_copy": size / ms * 1e3 / copy,
        "share_of_same_copy": same / ms,
    }


def cases(rows: int, device: torch.device, *, alone: bool) -> Iterator[Case]:
    """One after another, so that only one's memory is held."""
    model = at_one_resolution(pretrained.load("kssm-signal-base", device))
    yield forecaster(model, rows, fused=True)
    if rows <= SLOW_ROWS:
        yield forecaster(model, rows, fused=False)
    if device.type == "cuda":
        yield streamed(model, rows)
    yield recurrence(rows, device)
    if alone:
        return
    if device.type == "cuda" and importlib.util.find_spec("mamba_ssm") is not None:
        yield mamba_update(rows, device)
    if rows < SLOW_ROWS:
        yield from (other(name, rows, device) for name in MODELS if name != "hybrid")


def forecaster(model: SignalForecaster, rows: int, *, fused: bool) -> Case:
    """The whole step; weights count with the bits that they are kept in."""
    arena = model.initial_state(rows + 1)
    values = torch.randn(rows, dtype=torch.float64, device=model.device)
    dt, slots = torch.ones_like(values), shuffled(rows, model.device)
    step = model.step_ if fused else model.step_torch_
    width = 2 if fused and model.device.type == "cuda" else 4
    size = 2 * rows * row_bytes(arena) + width * sum(p.numel() for p in model.parameters())
    return (
        "forecaster" if fused else "forecaster, torch",
        lambda: step(values, arena, slots, dt),
        size,
    )


def streamed(model: SignalForecaster, rows: int) -> Case:
    """The kernels that move windows and states, in all layers, chunk after chunk."""
    launching = importlib.import_module("kssm.forecast.fused.kernel_launch_many")
    plans = importlib.import_module("kssm.forecast.fused.kernel_plan_many")
    call_of = importlib.import_module("kssm.forecast.fused.kernel_call").Call
    weights = model.fused.current(model)
    if weights is None:
        raise SystemExit("the fused kernels have no form for this model or GPU")
    plan = plans.plan_many(rows, weights)
    between = plans.Between.allocate(min(rows, plan.chunk), weights, plan)
    for entry in between:
        entry.normal_()
    arena = model.initial_state(rows + 1)
    values = torch.zeros(rows, dtype=torch.float64, device=model.device)
    table = torch.tensor([arena[name].data_ptr() for name in model.row_spec()]).to(model.device)
    slots, healthy = shuffled(rows, model.device), values.bool()
    call = call_of(values, torch.ones_like(values), slots, table, values, healthy)

    def run() -> State:
        for first in range(0, rows, plan.chunk):
            chunk = call.part(first, first + plan.chunk)
            for layer in range(weights.sizes.layers):
                launching.move_windows(weights, plan, between, chunk, layer, pdl=False)
                launching.move_states(weights, plan, between, chunk, layer, pdl=False)
        return arena

    layers = {name: entry for name, entry in arena.items() if name.startswith("layers.")}
    inner, selection = weights.sizes.d_inner, weights.sizes.selection
    passed = rows * weights.sizes.layers * (5 * inner + selection) * weights.kind.itemsize
    return "states of all layers", run, 2 * rows * row_bytes(layers) + passed


def recurrence(rows: int, device: torch.device) -> Case:
    """The state's part of eight layers: bf16 inputs, fp32 state."""
    states = [torch.zeros(rows + 1, WIDTH, 2, device=device) for _ in range(LAYERS)]

    def draw(size: int) -> Tensor:
        return torch.randn(rows, size, device=device, dtype=torch.bfloat16)

    alpha, omega, dt, x, b_re, b_im = (draw(size) for size in 4 * [WIDTH] + 2 * [GROUPS])
    parameters = ScanParameters(*torch.randn(6, WIDTH, device=device))
    slots = shuffled(rows, device)

    def run() -> None:
        for state in states:
            kssm_step_(alpha, omega, dt, x, b_re, b_im, parameters, state, slots)

    between = sum(tensor.nbytes for tensor in (alpha, omega, dt, x, x, b_re, b_im))
    return "recurrence", run, LAYERS * (2 * rows * WIDTH * 2 * 4 + between)


def mamba_update(rows: int, device: torch.device) -> Case:
    """The Mamba authors' kernel for the same part of Mamba-1, with its states in slots too."""
    update = importlib.import_module("mamba_ssm.ops.triton.selective_state_update")
    states = [torch.zeros(rows + 1, WIDTH, MODES, device=device) for _ in range(LAYERS)]
    x, dt = (torch.randn(rows, WIDTH, device=device, dtype=torch.bfloat16) for _ in "xd")
    b, c = (torch.randn(rows, MODES, device=device, dtype=torch.bfloat16) for _ in "bc")
    a = -torch.rand(WIDTH, MODES, device=device)
    d, bias = torch.ones(WIDTH, device=device), torch.zeros(WIDTH, device=device)
    slots = shuffled(rows, device).int()

    def run() -> None:
        for state in states:
            update.selective_state_update(
                state, x, dt, a, b, c, d, dt_bias=bias, dt_softplus=True, state_batch_indices=slots
            )

    between = sum(tensor.nbytes for tensor in (x, dt, x, b, c))
    return "mamba-ssm", run, LAYERS * (2 * rows * WIDTH * MODES * 4 + between)


def other(name: str, rows: int, device: torch.device) -> Case:
    """A model of the zoo, without embedding and head."""
    model = build(name, "base").to(device).eval()
    arena = model.initial_state(rows + 1)
    x, slots = torch.randn(rows, model.d_model, device=device), shuffled(rows, device)
    size = 2 * rows * row_bytes(arena) + 4 * sum(p.numel() for p in model.parameters())
    return name, lambda: model.step_(x, arena, slots), size


def row_bytes(arena: State) -> int:
    return sum(math.prod(entry.shape[1:]) * entry.element_size() for entry in arena.values())


def shuffled(rows: int, device: torch.device) -> Tensor:
    """All slots but the padding's, in no order."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randperm(rows, generator=generator) + 1).to(device)


if __name__ == "__main__":
    main()
