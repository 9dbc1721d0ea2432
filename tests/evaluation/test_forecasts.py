"""Both ways of forecasting a task: the same numbers, and those of the library's front door."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kssm.evaluation.forecasts import forecast_task, stream_task
from kssm.forecast import Forecaster
from kssm.forecast.testing import tiny_forecaster
from kssm.runtime import Engine, EngineConfig
from tests.evaluation.support import toy_task


def test_forecasts_are_those_of_the_library() -> None:
    model = tiny_forecaster()
    quantiles = forecast_task(model, toy_task(), context_length=None, batch_tokens=64)
    assert quantiles.shape == (4, 9, 5)
    assert np.isfinite(quantiles).all()
    assert (np.diff(quantiles, axis=1) >= 0).all()
    alone, _ = Forecaster(model).predict_quantiles(toy_task().contexts(), 5)
    assert np.allclose(quantiles, alone.transpose(0, 2, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("thinning", [(), (4,)])
def test_streaming_gives_the_same_forecasts(thinning: tuple[int, ...]) -> None:
    model = tiny_forecaster(thinning=thinning)
    for context_length in (None, 12):
        whole = forecast_task(model, toy_task(), context_length=context_length, batch_tokens=4096)
        with Engine(model, EngineConfig(max_pending=16)) as engine:
            streamed = stream_task(engine, toy_task(), context_length=context_length)
            assert engine.stats().sessions == 0
        assert np.allclose(streamed, whole, rtol=1e-4, atol=1e-5)


def test_more_series_than_rows_take_turns() -> None:
    model = tiny_forecaster()
    whole = forecast_task(model, toy_task(), context_length=None, batch_tokens=4096)
    with Engine(model, EngineConfig(initial_rows=1, max_rows=1)) as engine:
        streamed = stream_task(engine, toy_task(), context_length=None)
    assert np.allclose(streamed, whole, rtol=1e-4, atol=1e-5)


def test_without_history_the_forecast_is_zero() -> None:
    blank = replace(toy_task(), values=np.full(70, np.nan, dtype=np.float32))
    quantiles = forecast_task(tiny_forecaster(), blank, context_length=None, batch_tokens=64)
    assert (quantiles == 0).all()
