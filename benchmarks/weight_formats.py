"""Forecast skill, size and speed of a forecaster in each weight format.

``python -m benchmarks.weight_formats --tasks FOLDER`` scores every task file (``kssm evaluate``
says what they hold) and ends with one line of JSON. Scores are relative to seasonal naive.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from kssm.evaluation.forecasts import forecast_task
from kssm.evaluation.report import report_task, summarise
from kssm.evaluation.tasks import Task, load_task, task_files
from kssm.forecast import SignalForecaster, pretrained
from kssm.quantization import WeightFormat, quantize

CONTEXT = 4096


@dataclass(frozen=True)
class Row:
    """One format: ``distance`` is the mean difference of its quantiles from those of fp32, in
    widths of the 80% interval; ``coverage`` is of that interval, pooled over all windows."""

    weights: WeightFormat
    megabytes: float
    mase: float
    crps: float
    worst_task: float
    distance: float
    coverage: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=Path, required=True, help="folder of task files NAME.npz")
    parser.add_argument("--model", default=pretrained.DEFAULT)
    parser.add_argument("--max-series", type=int, default=0, help="of a task, 0 = all")
    parser.add_argument("--output", type=Path, help="folder for the forecasts FORMAT/NAME.npz")
    found = parser.parse_args(arguments)
    torch.set_num_threads(1)
    tasks = {file.stem: load_task(file) for file in task_files(found.tasks)}
    if found.max_series:
        tasks = {name: task.sample(found.max_series) for name, task in tasks.items()}
    rows = measure(found.model, tasks, found.output)
    print(json.dumps(_line(found.model, found.max_series, rows)))


def measure(name: str, tasks: Mapping[str, Task], output: Path | None) -> list[Row]:
    """Every format over the same tasks; the first, fp32, is what the others are compared with."""
    print(f"{'weights':>9} {'MB':>6} {'MASE':>8} {'CRPS':>8} {'worst':>8} {'moved':>8} {'80%':>6}")
    rows: list[Row] = []
    reference: list[NDArray[np.float32]] = []
    before: dict[str, Any] = {}
    for weights in get_args(WeightFormat):
        model = pretrained.load(name)
        quantize(model, weights)
        forecasts = [_forecast(model, task) for task in tasks.values()]
        reports = [
            report_task(task, quantiles, model.config.head_horizon)
            for task, quantiles in zip(tasks.values(), forecasts, strict=True)
        ]
        summary = summarise(reports)
        reference, before = reference or forecasts, before or summary
        rows.append(_row(weights, model, summary, before, _distance(forecasts, reference)))
        _print(rows[-1])
        if output:
            _save(output / weights, list(tasks), forecasts)
    return rows


def _forecast(model: SignalForecaster, task: Task) -> NDArray[np.float32]:
    return forecast_task(model, task, context_length=CONTEXT, batch_tokens=65_536)


def _row(
    weights: WeightFormat,
    model: SignalForecaster,
    summary: dict[str, Any],
    before: dict[str, Any],
    distance: float,
) -> Row:
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    mean = summary["geometric_mean"]
    worst = max(
        task["CRPS"] / before["tasks"][name]["CRPS"] - 1 for name, task in summary["tasks"].items()
    )
    coverage = _pooled(summary["calibration"])
    return Row(weights, size / 1e6, mean["MASE"], mean["CRPS"], worst, distance, coverage)


def _pooled(parts: dict[str, Any]) -> float:
    known = [part for part in parts.values() if part is not None]
    return statistics.mean(part["coverage_80"] for part in known)


def _distance(
    forecasts: Sequence[NDArray[np.float32]], reference: Sequence[NDArray[np.float32]]
) -> float:
    """Mean over the tasks of the summed difference over the summed width."""
    ratios = [
        np.abs(ours - theirs).mean() / max(float((theirs[:, -1] - theirs[:, 0]).mean()), 1e-30)
        for ours, theirs in zip(forecasts, reference, strict=True)
    ]
    return float(np.mean(ratios))


def _save(folder: Path, names: Sequence[str], forecasts: Sequence[NDArray[np.float32]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, quantiles in zip(names, forecasts, strict=True):
        np.savez(folder / f"{name}.npz", quantiles=quantiles)


def _print(row: Row) -> None:
    scores = f"{row.mase:8.4f} {row.crps:8.4f} {row.worst_task:+8.2%} {row.distance:8.2%}"
    print(f"{row.weights:>9} {row.megabytes:6.2f} {scores} {row.coverage:6.3f}", flush=True)


def _line(model: str, max_series: int, rows: Sequence[Row]) -> dict[str, object]:
    return {
        "benchmark": "weight_formats",
        "model": model,
        "context": CONTEXT,
        "max_series": max_series,
        "torch": torch.__version__,
        "formats": [asdict(row) for row in rows],
    }


if __name__ == "__main__":
    main()
