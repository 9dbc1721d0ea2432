"""A model for ``fev``, the harness of fev-bench.

    import fev
    from kssm.integrations.fev import KSSMModel

    model = KSSMModel()
    predictions = model.fit_predict(task)  # task: fev.Task
    task.evaluation_summary(
        predictions, model_name=model.model_name, inference_time_s=model.inference_time
    )

Needs ``pip install 'kssm[fev]'``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from kssm.forecast import Forecaster, pretrained

try:
    import datasets
    import fev
except ImportError as error:
    raise ImportError("this adapter needs fev: pip install 'kssm[fev]'") from error


class KSSMModel(fev.ForecastingModel):
    """Zero-shot forecasts of every target column of a task on its own; covariates are ignored.

    Args:
        model: checkpoint name or folder, or a forecaster.
        device: where a checkpoint is loaded.
        context_length: use only the last samples of each series, None = all.
    """

    model_name = "kssm"

    def __init__(
        self,
        model: str | Path | Forecaster = pretrained.DEFAULT,
        device: str | torch.device = "cpu",
        context_length: int | None = None,
    ) -> None:
        super().__init__()
        loaded = isinstance(model, Forecaster)
        self._forecaster = model if loaded else Forecaster.from_pretrained(model, device)
        self._context_length = context_length

    def _fit_predict(self, task: fev.Task) -> list[datasets.DatasetDict]:
        return [self._predict(window, task) for window in task.iter_windows()]

    def _predict(self, window: fev.EvaluationWindow, task: fev.Task) -> datasets.DatasetDict:
        past, _ = window.get_input_data()
        with self._record_inference_time():
            return datasets.DatasetDict(
                {
                    column: self._forecast([np.asarray(values) for values in past[column]], task)
                    for column in task.target_columns
                }
            )

    def _forecast(self, series: Sequence[NDArray[np.float64]], task: fev.Task) -> datasets.Dataset:
        """The point forecast (the median) and one column for each of the task's levels."""
        levels = task.quantile_levels or [0.5]
        quantiles, mean = self._forecaster.predict_quantiles(
            series, task.horizon, levels, context_length=self._context_length
        )
        columns = {"predictions": mean}
        columns |= {str(level): quantiles[..., i] for i, level in enumerate(task.quantile_levels)}
        finite = {name: list(np.nan_to_num(values)) for name, values in columns.items()}
        return datasets.Dataset.from_dict(finite, features=task.predictions_schema)
