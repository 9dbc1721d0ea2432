"""Anomaly scores against the labelled windows of the Numenta Anomaly Benchmark (NAB).

    git clone https://github.com/numenta/NAB
    pip install scikit-learn pandas && pip install --no-deps TSB-AD
    python -m experiments.anomaly.nab --nab NAB --output experiments/anomaly/nab.json

Every labelled series of real data counts once. As in the benchmark, nothing is scored in the first
15% of a series (at most 750 samples). AUC-PR is scikit-learn's average precision; VUS-PR
(Paparrizos et al. 2022), which forgives scores that come a little early or late, is TSB-AD's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from experiments.anomaly.detectors import moving_mad, moving_z, smoothed, static_threshold
from kssm.forecast import pretrained
from kssm.forecast.anomaly import watch
from kssm.forecast.forecaster import SignalForecaster

Floats = NDArray[np.float64]

BASELINES = ("static threshold", "moving z, 128", "moving z, 512")
VUS_WINDOW = 100
VUS_THRESHOLDS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description="Score anomaly detection on NAB.")
    parser.add_argument("--nab", type=Path, required=True, help="a clone of numenta/NAB")
    parser.add_argument("--model", default=pretrained.DEFAULT)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--no-vus", action="store_true", help="AUC-PR alone, which is fast")
    parser.add_argument("--limit", type=int, help="only the first series")
    arguments = parser.parse_args()
    model = pretrained.load(arguments.model)
    series: dict[str, dict[str, dict[str, float]]] = {}
    for name, values, labels in list(labelled(arguments.nab))[: arguments.limit]:
        start = min(int(0.15 * len(values)), 750)
        scores = {n: s[start:] for n, s in detect(model, values, start).items()}
        series[name] = evaluate(scores, labels[start:], vus=not arguments.no_vus)
        print(name, {k: round(v["surprise"], 3) for k, v in series[name].items()}, flush=True)
    result = {
        "model": arguments.model,
        "fingerprint": model.fingerprint,
        "commit": _commit(),
        "summary": {metric: summarise(series, metric) for metric in next(iter(series.values()))},
        "series": series,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["summary"]))


def labelled(nab: Path) -> Iterator[tuple[str, Floats, NDArray[np.int64]]]:
    """(name, values, 1 inside a labelled window) of every real series that has labels."""
    windows = json.loads((nab / "labels" / "combined_windows.json").read_text())
    for name, spans in sorted(windows.items()):
        if name.startswith("artificial") or not spans:
            continue
        table = pd.read_csv(nab / "data" / name, parse_dates=["timestamp"])
        inside = [table.timestamp.between(*map(pd.Timestamp, span)) for span in spans]
        yield name, table.value.to_numpy(np.float64), np.any(inside, axis=0).astype(np.int64)


def detect(model: SignalForecaster, values: Floats, learnt: int) -> dict[str, Floats]:
    """Every detector's scores of every sample, larger = more anomalous."""
    alarm = watch(model, values)
    z = {window: moving_z(values, window) for window in (128, 512)}
    return {
        "probability": -np.log(np.nan_to_num(alarm.probability, nan=1.0)),
        "surprise": np.nan_to_num(alarm.surprise),
        "static threshold": static_threshold(values, learnt),
        "moving z, 128": z[128],
        "moving z, 512": z[512],
        "moving MAD, 512": moving_mad(values, 512),
        "moving z, 512, smoothed": smoothed(z[512], 32),
    }


def evaluate(
    scores: Mapping[str, Floats], labels: NDArray[np.int64], *, vus: bool
) -> dict[str, dict[str, float]]:
    """{metric: {detector: value}}."""
    from sklearn.metrics import average_precision_score  # pyright: ignore[reportMissingImports]

    found = {"AUC-PR": {n: float(average_precision_score(labels, s)) for n, s in scores.items()}}
    if vus:
        found["VUS-PR"] = {n: _vus(labels, s) for n, s in scores.items()}
    return found


def summarise(series: Mapping[str, Any], metric: str) -> dict[str, dict[str, float]]:
    """Each detector's mean, and the share of series on which it beats each baseline and all."""
    table = {name: found[metric] for name, found in series.items()}
    detectors = next(iter(table.values()))
    return {
        detector: {
            "mean": float(np.mean([row[detector] for row in table.values()])),
            **{f"above {other}": _wins(table, detector, [other]) for other in BASELINES},
            "above all three": _wins(table, detector, BASELINES),
        }
        for detector in detectors
    }


def _wins(table: Mapping[str, Mapping[str, float]], detector: str, others: Sequence[str]) -> float:
    return float(
        np.mean([all(row[detector] > row[other] for other in others) for row in table.values()])
    )


def _vus(labels: NDArray[np.int64], scores: Floats) -> float:
    from TSB_AD.evaluation.basic_metrics import generate_curve  # pyright: ignore

    return float(generate_curve(labels, scores, VUS_WINDOW, "opt", VUS_THRESHOLDS)[-1])


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
