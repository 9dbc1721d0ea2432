"""A step of one row on one core, by model size and weight format, beside the machine's limits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch

from benchmarks.cpu_prefill import flops
from benchmarks.machine import Machine
from benchmarks.medians import medians
from kssm.forecast import ForecasterConfig, SignalForecaster
from kssm.models import KSSMConfig
from kssm.quantization import WeightFormat, quantize

SIZES = MappingProxyType(
    {
        "1M": ForecasterConfig(
            KSSMConfig(d_model=128, n_layers=5, d_inner=192, d_mlp=176, rank=16), head_hidden=256
        ),
        "3.3M": ForecasterConfig(KSSMConfig(n_layers=5)),
        "5M": ForecasterConfig(),
    }
)
FORMATS: tuple[tuple[str, WeightFormat], ...] = (
    ("float32", "float32"),
    ("float32, from a file in fp16", "float32"),
    ("float16", "float16"),
    ("bfloat16", "bfloat16"),
    ("int8", "int8"),
)


@dataclass(frozen=True)
class Size:
    """Medians in microseconds: ``step`` of the whole call, ``read`` of as many bytes as are packed,
    ``compute`` of as many multiply-adds in fp32 at the core's peak."""

    size: str
    weights: str
    parameters: int
    megabytes: float
    step: float
    read: float
    compute: float

    @property
    def of_limit(self) -> float:
        """The machine's limit to the step's time."""
        return max(self.read, self.compute) / self.step


def measure(names: Sequence[str], seconds: float) -> list[Size]:
    """Every format of the sizes ``names``, each for some ``seconds``."""
    machine, found = Machine(), list[Size]()
    gflops = machine.gflops(medians({"peak": machine.compute}, seconds)["peak"])
    for name in names:
        torch.manual_seed(0)
        model = SignalForecaster(SIZES[name]).eval().requires_grad_(False)
        found += [
            _measure(name, label, _prepared(model, label, weights), machine, gflops, seconds)
            for label, weights in FORMATS
        ]
    return found


def _prepared(model: SignalForecaster, label: str, weights: WeightFormat) -> SignalForecaster:
    """Random weights need all of their 32 bits; those that were stored in fp16 do not."""
    model = copy.deepcopy(model)
    if label != weights:
        for parameter in model.parameters():
            parameter.copy_(parameter.half() if parameter.dim() > 1 else parameter)
    quantize(model, weights)
    model.native.hold()
    return model


def _measure(
    name: str,
    label: str,
    model: SignalForecaster,
    machine: Machine,
    gflops: float,
    seconds: float,
) -> Size:
    step = step_of(model)
    step()
    packed = torch.ones(packed_bytes(model), dtype=torch.uint8)
    times = medians({"step": step, "read": lambda: machine.read(packed)}, seconds)
    compute = 1e-3 * flops(model, whole_head=True) / gflops
    numbers = (times["step"], times["read"], compute)
    parameters = sum(p.numel() for p in SignalForecaster(SIZES[name]).parameters())
    megabytes = round(len(packed) / 1e6, 2)
    return Size(name, label, parameters, megabytes, *(round(value, 1) for value in numbers))


def step_of(model: SignalForecaster, rows: int = 1) -> Callable[[], object]:
    """A step of all rows, with its samples at hand."""
    arena, slots = model.initial_state(rows + 1), torch.randperm(rows) + 1
    values, dt = torch.randn(rows).double(), torch.ones(rows).double()
    return lambda: model.step_(values, arena, slots, dt)


def packed_bytes(model: SignalForecaster) -> int:
    """Of the weights that a step reads."""
    found = model.native.usable(model)
    assert found is not None
    return found[1].nbytes


def print_sizes(found: Sequence[Size]) -> None:
    """As a table."""
    print(
        f"{'size':>5} {'weights':>29} {'MB':>6} {'step µs':>8} {'read µs':>8} {'peak µs':>8} limit"
    )
    for size in found:
        line = f"{size.size:>5} {size.weights:>29} {size.megabytes:6.2f} {size.step:8.1f}"
        print(f"{line} {size.read:8.1f} {size.compute:8.1f} {size.of_limit:5.0%}")
