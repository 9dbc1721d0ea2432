"""How often samples without known anomalies fall below a tail probability.

    python -m experiments.anomaly.false_alarms --tasks TASKS --output RESULT.json

TASKS is a folder of evaluation tasks (``kssm.evaluation.tasks``). Of each task up to 40 series
(drawn with seed 0) and their last 1,536 samples are read; the first 64 are not counted.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kssm.evaluation.tasks import load_task, task_files
from kssm.forecast import pretrained
from kssm.forecast.anomaly import watch

LEVELS = (0.1, 0.03, 0.01, 0.003, 0.001)
SERIES = 40
SAMPLES = 1536
SKIPPED = 64


def main() -> None:
    parser = argparse.ArgumentParser(description="False alarms on data without known anomalies.")
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--model", default=pretrained.DEFAULT)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    model = pretrained.load(arguments.model)
    found: dict[str, dict[str, object]] = {}
    for path in task_files(arguments.tasks):
        task = load_task(path).sample(SERIES)
        rows = [watch(model, values[-SAMPLES:].astype(np.float64)) for values in task.series()]
        probability = _scored([row.probability for row in rows])
        surprise = _scored([row.surprise for row in rows])
        found[task.name] = {
            "samples": len(probability),
            "times nominal": {str(p): float((probability < p).mean() / p) for p in LEVELS},
            "surprise": {str(p): float(np.quantile(surprise, 1.0 - p)) for p in (0.5, *LEVELS)},
        }
        print(task.name, found[task.name]["times nominal"], flush=True)
    result = {"model": arguments.model, "fingerprint": model.fingerprint, "tasks": found}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def _scored(rows: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    values = np.concatenate([row[SKIPPED:] for row in rows])
    return values[np.isfinite(values)]


if __name__ == "__main__":
    main()
