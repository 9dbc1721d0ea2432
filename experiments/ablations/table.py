"""The table of an ablation: every lever against the base, and what of it is noise."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
METRICS = ("MASE", "CRPS")
BASE = "base"


def deviation(rows: Sequence[Row], metric: str) -> float:
    """Relative deviation of a single run, pooled over all levers that ran with several seeds."""
    squares, freedom = 0.0, 0
    for runs in _by_lever(rows).values():
        logs = [math.log(run[metric]) for run in runs]
        mean = sum(logs) / len(logs)
        squares += sum((value - mean) ** 2 for value in logs)
        freedom += len(logs) - 1
    return math.sqrt(squares / freedom) if freedom else math.nan


def markdown(rows: Sequence[Row]) -> str:
    """One line a lever: its scores (geometric mean over seeds), and the CRPS' difference to the
    base with its standard error."""
    levers = _by_lever(rows)
    lines = [
        "| lever | seeds | Msamples | loss | MASE / CRPS | CRPS to base |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for lever, runs in levers.items():
        scores = [_mean(runs, metric) for metric in METRICS]
        cells = [
            lever,
            str(len(runs)),
            f"{sum(run['samples'] for run in runs) / len(runs) / 1e6:.0f}",
            f"{sum(run['loss'] for run in runs) / len(runs):.4f}",
            f"{scores[0]:.3f} / {scores[1]:.3f}",
            _difference(rows, lever, "CRPS"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    noise = " / ".join(f"{100 * deviation(rows, metric):.1f}%" for metric in METRICS)
    return "\n".join([*lines, "", f"One run's deviation, {' / '.join(METRICS)}: {noise}."])


def _difference(rows: Sequence[Row], lever: str, metric: str) -> str:
    """Percent above the base's geometric mean, with the standard error of that difference."""
    levers = _by_lever(rows)
    if lever == BASE or BASE not in levers:
        return ""
    runs, base = levers[lever], levers[BASE]
    change = 100 * (_mean(runs, metric) / _mean(base, metric) - 1)
    error = 100 * deviation(rows, metric) * math.sqrt(1 / len(runs) + 1 / len(base))
    return f"{change:+.1f}% ± {error:.1f}"


def _mean(runs: Sequence[Row], metric: str) -> float:
    return math.exp(sum(math.log(run[metric]) for run in runs) / len(runs))


def _by_lever(rows: Sequence[Row]) -> dict[str, list[Row]]:
    levers: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        levers[row["lever"]].append(row)
    return dict(levers)
