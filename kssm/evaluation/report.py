"""What an evaluation found, task by task and over all of them, ready to be written as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kssm.evaluation.calibration import Calibration, calibrate, pooled
from kssm.evaluation.scores import Scores, geometric_mean, quantile_loss, score, seasonal_naive
from kssm.evaluation.tasks import Floats, Task

BUCKETS = ((1, 8), (9, 24), (25, 64), (65, 128), (129, 256), (257, 512))
"""Samples ahead, first and last, that are looked at together; the last bucket takes the rest."""


@dataclass(frozen=True)
class TaskReport:
    """One task's result.

    Attributes:
        scores: of the forecasts.
        baseline: of the seasonal naive forecast.
        direct, rolled_out: calibration up to the head's horizon, and beyond it.
        loss: quantile loss by bucket [len(BUCKETS)], of the forecasts.
        baseline_loss: the same of the seasonal naive forecast; 0 where no target lies.
    """

    name: str
    series: int
    windows: int
    scores: Scores
    baseline: Scores
    direct: Calibration
    rolled_out: Calibration
    loss: Floats
    baseline_loss: Floats

    @property
    def relative(self) -> Scores:
        return self.scores.relative_to(self.baseline)

    def as_dict(self) -> dict[str, Any]:
        return {
            "series": self.series,
            "windows": self.windows,
            "MASE": self.scores.mase,
            "CRPS": self.scores.crps,
            "relative_MASE": self.relative.mase,
            "relative_CRPS": self.relative.crps,
            "direct": _calibration(self.direct),
            "rolled_out": _calibration(self.rolled_out),
            "relative_CRPS_by_horizon": self._by_horizon(),
        }

    def _by_horizon(self) -> dict[str, float]:
        pairs = zip(BUCKETS, self.loss, self.baseline_loss, strict=True)
        return {_label(bucket): ours / naive for bucket, ours, naive in pairs if naive > 0}


def report_task(task: Task, quantiles: NDArray[np.float32], head_horizon: int) -> TaskReport:
    """Score and calibrate quantiles [n_windows, 9, prediction_length] of a task."""
    truth = task.targets()
    naive = seasonal_naive(task)
    return TaskReport(
        name=task.name,
        series=len(task.offsets) - 1,
        windows=len(truth),
        scores=score(task, quantiles),
        baseline=score(task, naive),
        direct=calibrate(truth[:, :head_horizon], quantiles[..., :head_horizon]),
        rolled_out=calibrate(truth[:, head_horizon:], quantiles[..., head_horizon:]),
        loss=_by_bucket(quantile_loss(truth, quantiles)),
        baseline_loss=_by_bucket(quantile_loss(truth, naive)),
    )


def summarise(reports: Sequence[TaskReport]) -> dict[str, Any]:
    """Geometric means over tasks relative to seasonal naive, pooled calibration, every task."""
    return {
        "relative_to": "seasonal naive",
        "geometric_mean": _geometric_mean([report.relative for report in reports]),
        "relative_CRPS_by_horizon": _mean_by_horizon(reports),
        "calibration": {
            "direct": _calibration(pooled(report.direct for report in reports)),
            "rolled_out": _calibration(pooled(report.rolled_out for report in reports)),
        },
        "tasks": {report.name: report.as_dict() for report in reports},
    }


def _geometric_mean(scores: Sequence[Scores]) -> dict[str, float]:
    return {
        "MASE": geometric_mean([score.mase for score in scores]),
        "CRPS": geometric_mean([score.crps for score in scores]),
    }


def _mean_by_horizon(reports: Sequence[TaskReport]) -> dict[str, dict[str, float]]:
    """Each bucket's geometric mean over the tasks that reach into it."""
    tasks = [report.as_dict()["relative_CRPS_by_horizon"] for report in reports]
    reached = {bucket: [t[bucket] for t in tasks if bucket in t] for bucket in map(_label, BUCKETS)}
    return {
        bucket: {"tasks": len(values), "CRPS": geometric_mean(values)}
        for bucket, values in reached.items()
        if values
    }


def _by_bucket(loss: Floats) -> Floats:
    last = len(BUCKETS) - 1
    ends = [None if i == last else stop for i, (_, stop) in enumerate(BUCKETS)]
    return np.array([loss[:, BUCKETS[i][0] - 1 : ends[i]].sum() for i in range(len(BUCKETS))])


def _label(bucket: tuple[int, int]) -> str:
    return f"{bucket[0]}-{bucket[1]}" if bucket != BUCKETS[-1] else f"{bucket[0]}+"


def _calibration(calibration: Calibration) -> dict[str, Any] | None:
    if not calibration.samples:
        return None
    return {
        "samples": calibration.samples,
        "coverage_80": calibration.coverage,
        "below": calibration.below.tolist(),
        "pit": calibration.pit.tolist(),
    }
