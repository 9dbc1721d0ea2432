"""Forecasts of the lever `season` for evaluation tasks: the season known, estimated or not told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.ablations.season import SeasonForecaster, unit_of
from experiments.ablations.season_training import dominant_period
from kssm.evaluation.tasks import Floats, Task
from kssm.forecast.batch import batches
from kssm.forecast.distribution import LEVELS
from kssm.models import State

CONTEXT: Final = 16_384
BATCH_TOKENS: Final = 262_144
LOOK_BACK: Final = 4096  # samples that a season is estimated from


def known_unit(task: Task) -> float:
    """From the season that belongs to the task's frequency; one interval where it names none."""
    return float(unit_of(torch.tensor(float(task.season)))) if task.season > 1 else 1.0


def estimated_unit(task: Task) -> float:
    """From the histories: the median of the rows' strongest rhythms."""
    periods = [_period(part[0][-LOOK_BACK:]) for part in task.parts(CONTEXT)]
    return float(unit_of(torch.tensor(float(np.median(periods)))))


def _period(past: Floats) -> float:
    return float(dominant_period(torch.from_numpy(past).unsqueeze(0)))


def forecast_task(model: SeasonForecaster, task: Task, unit: float) -> NDArray[np.float32]:
    """Quantiles [n_windows, 9, prediction_length], every sample told as ``unit``."""
    parts = task.parts(CONTEXT)
    horizon = task.prediction_length
    out = np.empty((len(parts), task.windows, horizon, len(LEVELS)))
    for rows in batches([len(part[0]) for part in parts], BATCH_TOKENS):
        state = model.initial_state(len(rows))
        for window, part in enumerate(zip(*(parts[row] for row in rows), strict=True)):
            hidden, state = _read(model, part, state, unit)
            forecast = model.forecast_spaced(hidden, state, horizon, unit)
            out[rows, window] = forecast.cpu().numpy()
    windows = out.reshape(-1, horizon, len(LEVELS)).transpose(0, 2, 1)
    return np.nan_to_num(windows).astype(np.float32)


def _read(
    model: SeasonForecaster, series: Sequence[Floats], state: State, unit: float
) -> tuple[Tensor, State]:
    """The last hidden vectors [B, d_model] and the state, in passes of bounded size."""
    lengths = torch.tensor([len(values) for values in series], device=model.device)
    padded = np.full((len(series), max(map(len, series))), np.nan)
    for row, values in enumerate(series):
        padded[row, : len(values)] = values
    samples = torch.from_numpy(padded).to(model.device)
    chunk = max(1, BATCH_TOKENS // len(series))
    hidden = torch.zeros(len(series), model.config.backbone.d_model, device=model.device)
    for start in range(0, samples.shape[1], chunk):
        left = (lengths - start).clamp(0, min(chunk, samples.shape[1] - start))
        part = samples[:, start : start + chunk]
        new, state = model.read_on(part, state, left, unit)
        hidden = torch.where((left > 0).unsqueeze(1), new, hidden)
    return hidden, state
