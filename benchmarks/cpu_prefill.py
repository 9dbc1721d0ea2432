"""Prefill on the CPU: compiled, in torch, and the arithmetic that one core can do."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.medians import medians
from kssm.forecast import SignalForecaster
from kssm.forecast.native import build, library, weights

TURNS = 4_000_000
"""Of the loop in peak.c: some tens of milliseconds."""


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
    find_peak = Peak()
    return [_measure(model, find_peak, *shape, seconds) for shape in shapes]


def _measure(
    model: SignalForecaster, find_peak: Peak, rows: int, tokens: int, seconds: float
) -> Prompts:
    values, state = torch.randn(rows, tokens).double(), model.initial_state(rows)
    times = medians(
        {
            "native": lambda: model.prefill(values, state),
            "torch": lambda: model.prefill_torch(values, state),
            "peak": find_peak,
        },
        seconds,
    )
    native, other = (1e6 * rows * tokens / times[name] for name in ("native", "torch"))
    work, peak = 1e-9 * native * flops(model), find_peak.gflops(times["peak"])
    shares = (round(work, 1), round(work / (peak * torch.get_num_threads()), 3))
    return Prompts(rows, tokens, round(native), round(other), *shares)


def flops(model: SignalForecaster) -> int:
    """Of the matrix products for one sample that is not the last, whose head reads few horizons."""
    c = model.config
    shapes = [shape for _, shape in weights.expected(c) if len(shape) == 2]
    rest = c.head_hidden * (c.head_horizon - weights.SCORED_HORIZONS) * 10
    backbone = weights.kssm_sizes(c)
    conv = backbone.n_layers * backbone.conv_width * backbone.d_inner
    return 2 * (sum(outputs * inputs for outputs, inputs in shapes) - rest - conv)


class Peak:
    """Runs as many multiply-adds as one core can, from registers alone."""

    def __init__(self) -> None:
        variants, command = library.usable_variants(), build.compiler()
        if not variants or command is None:
            raise SystemExit("the peak needs a C compiler")
        flags = [*build.FLAGS, *build.variants()[variants[0]]]
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "peak.so"
            source = Path(__file__).with_name("peak.c")
            subprocess.run([*command, *flags, str(source), "-o", str(target)], check=True)
            self._run = ctypes.CDLL(str(target)).peak
        self._run.argtypes = (ctypes.c_long,)
        self._numbers = 0

    def __call__(self) -> None:
        self._numbers = TURNS * self._run(TURNS)

    def gflops(self, microseconds: float) -> float:
        """A multiply-add counts as two."""
        return 2e-3 * self._numbers / microseconds
