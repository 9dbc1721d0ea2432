"""A GluonTS ``Predictor``, so that its evaluation and back-testing score KSSM like any model.

    from gluonts.model import evaluate_model
    from kssm.integrations.gluonts import KSSMPredictor

    predictor = KSSMPredictor.from_pretrained("kssm-signal-base", prediction_length=24)
    evaluate_model(predictor, test_data=..., metrics=[...])

Needs ``pip install 'kssm[gluonts]'``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kssm.errors import InvalidInputError
from kssm.forecast import Forecaster, pretrained
from kssm.forecast.distribution import LEVELS, check_levels

try:
    from gluonts.dataset import Dataset
    from gluonts.dataset.util import forecast_start
    from gluonts.model.forecast import QuantileForecast
    from gluonts.model.predictor import Predictor
except ImportError as error:
    raise ImportError("this adapter needs GluonTS: pip install 'kssm[gluonts]'") from error


class KSSMPredictor(Predictor):
    """Forecasts univariate GluonTS data sets in batches; covariates are ignored.

    Args:
        forecaster: the model.
        prediction_length: samples ahead.
        quantile_levels: levels inside (0, 1); GluonTS interpolates between them.
        context_length: use only the last samples of each series, None = all.
        batch_size: series in one call of the model.
    """

    def __init__(
        self,
        forecaster: Forecaster,
        prediction_length: int,
        *,
        quantile_levels: Sequence[float] = LEVELS,
        context_length: int | None = None,
        batch_size: int = 256,
    ) -> None:
        super().__init__(prediction_length=prediction_length)
        self._forecaster = forecaster
        self._levels = check_levels(quantile_levels)
        self._context_length = context_length
        self._batch_size = batch_size

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = pretrained.DEFAULT,
        *,
        prediction_length: int,
        device: str | torch.device = "cpu",
        context_length: int | None = None,
    ) -> KSSMPredictor:
        """A predictor over a checkpoint; raises ``model_not_found``."""
        forecaster = Forecaster.from_pretrained(name_or_path, device)
        return cls(forecaster, prediction_length, context_length=context_length)

    def predict(self, dataset: Dataset, **kwargs: object) -> Iterator[QuantileForecast]:
        """A ``QuantileForecast`` for each entry, in order, with the median as the mean.

        What else GluonTS passes (``num_samples``) is ignored: the quantiles are the model's own.
        Raises ``InvalidInputError`` (``wrong_shape``) for multivariate targets, and as
        ``Forecaster.predict_quantiles``. A target without any observed value forecasts 0.
        """
        del kwargs
        entries = iter(dataset)
        while batch := list(itertools.islice(entries, self._batch_size)):
            yield from self._forecasts(batch)

    def _forecasts(self, batch: Sequence[dict[str, Any]]) -> Iterator[QuantileForecast]:
        series = [np.asarray(entry["target"], dtype=np.float64) for entry in batch]
        if any(values.ndim != 1 for values in series):
            raise InvalidInputError("only univariate targets are forecast", code="wrong_shape")
        quantiles, mean = self._forecaster.predict_quantiles(
            series, self.prediction_length, self._levels, context_length=self._context_length
        )
        for entry, rows, middle in zip(batch, quantiles, mean, strict=True):
            arrays = np.concatenate([rows.T, middle[None]])
            yield QuantileForecast(
                forecast_arrays=np.nan_to_num(arrays),
                start_date=forecast_start(entry),
                forecast_keys=[*(str(level) for level in self._levels), "mean"],
                item_id=entry.get("item_id"),
            )
