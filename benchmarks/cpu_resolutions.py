"""What reading rows at several resolutions costs on one core, against one resolution."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from benchmarks.medians import medians
from kssm.forecast import SignalForecaster
from kssm.forecast.resolutions import MultiResolutionForecaster, at_one_resolution

LEVELS = (0.1, 0.5, 0.9)
HORIZON = 24
PROMPT = 512
Times = dict[str, float]


class Models(NamedTuple):
    """The same weights thrice, so that none finds another's in its caches."""

    single: SignalForecaster
    whole: MultiResolutionForecaster
    apart: MultiResolutionForecaster


@dataclass(frozen=True)
class Cost:
    """Of one action: microseconds at one resolution, at all in one pass, at one after the other."""

    action: str
    single: float
    whole: float
    apart: float

    @property
    def ratio(self) -> float:
        """All resolutions to one."""
        return self.whole / self.single

    @property
    def ratio_apart(self) -> float:
        """All resolutions, one after the other, to one."""
        return self.apart / self.single


def measure(model: SignalForecaster, batches: Sequence[int], seconds: float) -> list[Cost]:
    """Steps of each batch size, a forecast and a prompt; nothing for models of one resolution."""
    if not isinstance(model, MultiResolutionForecaster):
        return []
    with torch.inference_mode(False):  # else the copy's weights could not be watched for writes
        single, apart = at_one_resolution(model), copy.deepcopy(model)
    for other in (single, apart):
        other.native.hold()
    models = Models(single, model, apart)
    costs = [cost for rows in batches for cost in _steps(models, rows, seconds)]
    return [*costs, *_reads(models, seconds)]


def _steps(models: Models, rows: int, seconds: float) -> list[Cost]:
    """Median and mean over whole blocks: copies are due at every 4th sample, say, not at each."""
    slots, dt = torch.arange(1, rows + 1), torch.ones(rows, dtype=torch.float64)
    arenas = [model.initial_state(rows + 1) for model in models]
    steps = (models.single.step_, models.whole.step_, models.apart.step_apart_)
    times: list[list[float]] = [[], [], []]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not times[0]:
        for values in torch.randn(models.whole.config.head_horizon, rows, dtype=torch.float64):
            for step, arena, found in zip(steps, arenas, times, strict=True):
                start = time.process_time()
                step(values, arena, slots, dt)
                found.append(1e6 * (time.process_time() - start))
    return [
        Cost(f"step of {rows}, median", *map(statistics.median, times)),
        Cost(f"step of {rows}, mean", *map(statistics.mean, times)),
    ]


def _reads(models: Models, seconds: float) -> list[Cost]:
    single, model, apart = models
    values = torch.randn(1, PROMPT, dtype=torch.float64)
    fresh, plain = model.initial_state(1), single.initial_state(1)
    state, own = model.prefill(values, fresh).state, single.prefill(values, plain).state
    forecasts: Mapping[str, Callable[[], object]] = {
        "single": lambda: single.forecast(own, HORIZON, LEVELS),
        "whole": lambda: model.forecast(state, HORIZON, LEVELS),
        "apart": lambda: apart.forecast_apart(state, HORIZON, LEVELS),
    }
    prompts: Mapping[str, Callable[[], object]] = {
        "single": lambda: single.prefill(values, plain),
        "whole": lambda: model.prefill(values, fresh),
        "apart": lambda: apart.prefill_apart(values, fresh),
    }
    return [
        Cost(f"forecast {HORIZON} ahead", **medians(dict(forecasts), seconds)),
        Cost(f"prompt of {PROMPT}", **medians(dict(prompts), seconds)),
    ]


def show(costs: Sequence[Cost]) -> None:
    """Print a table."""
    if costs:
        print(f"{'several resolutions':>22} {'one µs':>9} {'all µs':>9} {'ratio':>6} {'apart':>6}")
    for cost in costs:
        line = f"{cost.action:>22} {cost.single:9,.0f} {cost.whole:9,.0f}"
        print(f"{line} {cost.ratio:6.2f} {cost.ratio_apart:6.2f}")
