"""Prefill on the CPU: compiled, in torch, and the arithmetic that one core can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.machine import Machine
from benchmarks.medians import medians
from kssm.forecast import SignalForecaster
from kssm.forecast.native import weights


@dataclass(frozen=True)
class Prompts:
    """Samples a second of ``rows`` series of ``tokens`` samples, and shares of the core's peak."""

    rows: int
    tokens: int
    native: float
    torch: float
    gflops: float
    of_peak: float

    @property
    def speedup(self) -> float:
        """The compiled prefill's rate to torch's."""
        return self.native / self.torch


def measure(
    model: SignalForecaster, shapes: Sequence[tuple[int, int]], seconds: float
) -> list[Prompts]:
    """Each shape for some ``seconds``; torch's threads share the rows, so should be few."""
    machine = Machine()
    return [_measure(model, machine, *shape, seconds) for shape in shapes]


def _measure(
    model: SignalForecaster, machine: Machine, rows: int, tokens: int, seconds: float
) -> Prompts:
    values, state = torch.randn(rows, tokens).double(), model.initial_state(rows)
    times = medians(
        {
            "native": lambda: model.prefill(values, state),
            "torch": lambda: model.prefill_torch(values, state),
            "peak": machine.compute,
        },
        seconds,
    )
    native, other = (1e6 * rows * tokens / times[name] for name in ("native", "torch"))
    work, peak = 1e-9 * native * flops(model), machine.gflops(times["peak"])
    shares = (round(work, 1), round(work / (peak * torch.get_num_threads()), 3))
    return Prompts(rows, tokens, round(native), round(other), *shares)


def flops(model: SignalForecaster, *, whole_head: bool = False) -> int:
    """Of the matrix products for one sample; unless ``whole_head``, of one that is not the last,
    whose head reads few horizons."""
    c = model.config
    shapes = [shape for _, shape in weights.expected(c) if len(shape) == 2]
    rest = 0 if whole_head else c.head_hidden * (c.head_horizon - weights.SCORED_HORIZONS) * 10
    backbone = weights.kssm_sizes(c)
    conv = backbone.n_layers * backbone.conv_width * backbone.d_inner
    return 2 * (sum(outputs * inputs for outputs, inputs in shapes) - rest - conv)
