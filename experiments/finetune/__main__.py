"""Fine-tune on each evaluation task's past, as a user would on a CSV file, and score its windows.

    taskset -c 0,1 python -m experiments.finetune --tasks FOLDER --output runs/finetune

For each task what comes before its test windows is written as a CSV file in long format, read back
and fine-tuned on; the windows themselves are scored with the old weights and the new ones.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kssm.evaluation.forecasts import forecast_task
from kssm.evaluation.scores import Scores, geometric_mean, score
from kssm.evaluation.tasks import Task, load_task, task_files
from kssm.forecast import pretrained
from kssm.forecast.forecaster import SignalForecaster
from kssm.training.finetune import CONTEXT, FinetuneConfig, finetune
from kssm.training.tables import TableFormat, read_series

BATCH_TOKENS = 65_536
TIE = 5e-4  # relative: less than this is neither gain nor loss


def write_past(task: Task, path: Path) -> None:
    """A CSV file ``id,value`` of every series up to its first test window; empty = missing."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "value"])
        for number, series in enumerate(task.series()):
            known = series[: task.cuts(len(series))[0]].tolist()
            writer.writerows([number, "" if math.isnan(x) else repr(x)] for x in known)


def scores_of(model: SignalForecaster, task: Task) -> Scores:
    options = {"context_length": 2 * CONTEXT, "batch_tokens": BATCH_TOKENS}
    return score(task, forecast_task(model, task, **options))


def run_task(file: Path, checkpoint: str, config: FinetuneConfig, output: Path) -> dict[str, Any]:
    """Fine-tune on one task's past and score its windows."""
    task = load_task(file)
    folder = output / file.stem
    folder.mkdir(parents=True, exist_ok=True)
    write_past(task, folder / "data.csv")
    model = pretrained.load(checkpoint)
    before = scores_of(model, task)
    started, busy = time.perf_counter(), time.process_time()
    series = read_series(folder / "data.csv", TableFormat("value", id_column="id"))
    result = finetune(model, series, replace(config, horizon=task.prediction_length))
    pretrained.save(model, folder / "model")
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    after = scores_of(pretrained.load(folder / "model"), task)
    return {
        "task": task.name,
        "series": result.series,
        "samples": result.samples,
        "seconds": round(seconds, 1),
        "processor_seconds": round(busy, 1),
        "share": result.share,
        "width": result.width,
        "validation_ratio": result.validation[1] / result.validation[0],
        "zero_shot": before._asdict(),
        "finetuned": after._asdict(),
        "crps_ratio": after.crps / before.crps,
        "mase_ratio": after.mase / before.mase,
    }


def summarise(rows: list[dict[str, Any]], threads: int) -> dict[str, Any]:
    """How many tasks gained and lost, and by how much on the whole."""
    ratios = [row["crps_ratio"] for row in rows]
    return {
        "threads": threads,
        "tasks": len(rows),
        "better": sum(ratio < 1 - TIE for ratio in ratios),
        "worse": sum(ratio > 1 + TIE for ratio in ratios),
        "mean_crps_ratio": geometric_mean(ratios),
        "mean_mase_ratio": geometric_mean([row["mase_ratio"] for row in rows]),
        "longest_seconds": max(row["seconds"] for row in rows),
        "results": rows,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="experiments.finetune", description=__doc__)
    parser.add_argument("--tasks", type=Path, required=True, help="folder of evaluation tasks")
    parser.add_argument("--output", type=Path, default=Path("runs/finetune"))
    parser.add_argument("--checkpoint", default=pretrained.DEFAULT)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--names", default="", help="tasks, separated by commas; all by default")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    names = options.names.split(",") if options.names else None
    config = FinetuneConfig(minutes=options.minutes, holdout=0.0)
    rows: list[dict[str, Any]] = []
    for file in task_files(options.tasks):
        if names is None or file.stem in names:
            rows.append(run_task(file, options.checkpoint, config, options.output))
            print(json.dumps(rows[-1]), flush=True)
    summary = summarise(rows, options.threads)
    (options.output / "results.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps({k: v for k, v in summary.items() if k != "results"}))


if __name__ == "__main__":
    main()
