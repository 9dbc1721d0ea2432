"""Forecaster: the library's front door, shaped like what users of forecasting libraries know."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from kssm.device import resolve_device
from kssm.errors import InvalidInputError
from kssm.forecast import pretrained
from kssm.forecast.batch import as_series, batches, consume
from kssm.forecast.distribution import LEVELS, check_levels
from kssm.forecast.forecaster import SignalForecaster
from kssm.forecast.stream import Stream
from kssm.quantization import WeightFormat

if TYPE_CHECKING:
    import pandas as pd


class Forecaster:
    """Zero-shot quantile forecasts of series and streams."""

    def __init__(self, model: SignalForecaster) -> None:
        self.model = model

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = pretrained.DEFAULT,
        device: str | torch.device = "cpu",
        *,
        weights: WeightFormat | None = None,
    ) -> Forecaster:
        """A shipped checkpoint by name, or any checkpoint folder.

        Args:
            name_or_path: one of ``pretrained.available()``, or a folder.
            device: where to compute: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``.
            weights: ``float32``, ``float16``, ``bfloat16`` or ``int8`` (see ``kssm.quantization``),
                None = as they are stored.

        Raises:
            KSSMError: ``model_not_found``, ``invalid_checkpoint``, ``invalid_weights``,
                ``invalid_device``.
        """
        where = resolve_device(device) if isinstance(device, str) else device
        return cls(pretrained.load(name_or_path, where, weights=weights))

    def predict_quantiles(
        self,
        inputs: Sequence[ArrayLike],
        prediction_length: int = 24,
        quantile_levels: Sequence[float] = LEVELS,
        *,
        batch_tokens: int = 65_536,
        context_length: int | None = None,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Forecast the samples that follow each series.

        Args:
            inputs: one-dimensional series of any lengths, NaN = missing.
            prediction_length: samples ahead.
            quantile_levels: levels inside (0, 1).
            batch_tokens: samples (padding included) in one pass over the model.
            context_length: use only the last samples of each series, None = all.

        Returns:
            quantiles [B, prediction_length, Q] and mean [B, prediction_length] (the median: the
            model has no mean). A series without any observed value gives NaN.

        Raises:
            InvalidInputError: ``empty_series``, ``wrong_shape``, ``wrong_dtype``,
                ``non_finite_value``, ``value_out_of_range``, ``invalid_quantiles``,
                ``invalid_horizon``.
        """
        if prediction_length < 1:
            raise InvalidInputError("horizon must be at least 1", code="invalid_horizon")
        levels = check_levels(quantile_levels)
        series = [as_series(values)[-(context_length or 0) :] for values in inputs]
        asked = (*levels, 0.5)
        out = np.empty((len(series), prediction_length, len(asked)))
        for rows in batches([len(values) for values in series], batch_tokens):
            state = consume(self.model, [series[row] for row in rows], batch_tokens)
            out[rows] = self.model.forecast(state, prediction_length, asked).cpu().numpy()
        return out[..., :-1], out[..., -1]

    def predict_df(
        self,
        df: pd.DataFrame,
        prediction_length: int = 24,
        quantile_levels: Sequence[float] = (0.1, 0.5, 0.9),
        *,
        id_column: str = "item_id",
        timestamp_column: str = "timestamp",
        target: str = "target",
    ) -> pd.DataFrame:
        """Forecast every series of a long-format frame.

        Timestamps are dates, ISO 8601 text, or numbers. Returns a frame with the id, the future
        timestamps (spaced like the median of the past ones; none after a single one),
        ``predictions`` (the median) and a column for each quantile level. Raises as
        ``predict_quantiles`` does, and ``column_not_found`` and ``invalid_timestamps``.
        """
        import pandas as pd

        missing = {id_column, timestamp_column, target} - set(df.columns)
        if missing:
            raise InvalidInputError(f"no column named {sorted(missing)}", code="column_not_found")
        if df.empty:
            raise InvalidInputError("the frame has no rows", code="empty_series")
        timed = df.assign(**{timestamp_column: _times(df, timestamp_column)})
        ordered = timed.sort_values([id_column, timestamp_column], kind="stable")
        groups = list(ordered.groupby(id_column, sort=False))
        quantiles, mean = self.predict_quantiles(
            [group[target].to_numpy(na_value=np.nan) for _, group in groups],
            prediction_length,
            quantile_levels,
        )
        frames: list[pd.DataFrame] = []
        for (name, group), rows, middle in zip(groups, quantiles, mean, strict=True):
            times = group[timestamp_column]
            step = times.diff().median()
            columns = {
                id_column: [name] * prediction_length,
                timestamp_column: [times.iloc[-1] + step * k for k in range(1, 1 + len(middle))],
                "predictions": middle,
            }
            columns |= {str(level): rows[:, i] for i, level in enumerate(quantile_levels)}
            frames.append(pd.DataFrame(columns))
        return pd.concat(frames, ignore_index=True)

    def stream(self, channels: int = 1) -> Stream:
        """A live stream: push samples, read a forecast after each, at constant cost."""
        return Stream(self.model, channels)


def _times(df: pd.DataFrame, name: str) -> pd.Series:
    """Dates and numbers as they are, ISO 8601 text as dates. Raises ``invalid_timestamps``."""
    import pandas as pd
    from pandas.api import types

    column = pd.Series(df[name])
    if types.is_numeric_dtype(column) or types.is_datetime64_any_dtype(column):
        return column
    try:
        return pd.to_datetime(column, format="ISO8601")
    except (TypeError, ValueError) as error:
        message = f"column {name!r} does not hold timestamps: {error}"
        raise InvalidInputError(message, code="invalid_timestamps") from error
