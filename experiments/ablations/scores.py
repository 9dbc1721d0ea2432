"""How the levers are scored: the weights of a run on every task, each row at one resolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.ablations import season_scores
from experiments.ablations.season import SeasonForecaster
from kssm.checkpoint import load_weights
from kssm.evaluation.forecasts import forecast_task
from kssm.evaluation.report import report_task, summarise
from kssm.evaluation.tasks import Task
from kssm.forecast.forecaster import SignalForecaster
from kssm.training.pretrain import Trainer
from kssm.training.scoring import BATCH_TOKENS, CONTEXT

Scores = dict[str, float]
Forecast = Callable[[Task], NDArray[np.float32]]


def score_weights(
    trainer: Trainer, folder: Path, tasks: Sequence[Task], device: torch.device
) -> Scores:
    """MASE and CRPS of a checkpoint folder relative to seasonal naive, and the coverage of the
    80% intervals, direct and rolled out; for the lever `season` also with other time units."""
    model = trainer.new_model()
    load_weights(model, folder)
    model = model.eval().requires_grad_(False).to(device)
    return score_forecaster(model, tasks)


def score_forecaster(model: SignalForecaster, tasks: Sequence[Task]) -> Scores:
    """``score_weights`` of a forecaster."""
    scores: Scores = {}
    for name, forecast in _ways(model).items():
        scores |= {f"{name}{metric}": value for metric, value in _score(forecast, tasks).items()}
    return scores


def _ways(model: SignalForecaster) -> dict[str, Forecast]:
    """Prefix of the scores' names -> forecasts."""
    if isinstance(model, SeasonForecaster):
        return {
            "": lambda task: season_scores.forecast_task(
                model, task, season_scores.known_unit(task)
            ),
            "estimated_": lambda task: season_scores.forecast_task(
                model, task, season_scores.estimated_unit(task)
            ),
            "untold_": lambda task: season_scores.forecast_task(model, task, 1.0),
        }
    return {"": partial(forecast_task, model, context_length=CONTEXT, batch_tokens=BATCH_TOKENS)}


def _score(forecast: Forecast, tasks: Sequence[Task]) -> Scores:
    direct = 64
    summary = summarise([report_task(task, forecast(task), direct) for task in tasks])
    found: Scores = dict(summary["geometric_mean"])
    for part, calibration in summary["calibration"].items():
        if calibration is not None:
            found[f"{part}_coverage"] = calibration["coverage_80"]
    for name, task in summary["tasks"].items():
        found[f"CRPS {name}"] = task["relative_CRPS"]
    return found
