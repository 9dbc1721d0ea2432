"""Evaluation on a GPU gives the CPU's forecasts, in both modes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kssm.evaluation.forecasts import forecast_task, stream_task
from kssm.forecast.testing import tiny_forecaster
from kssm.runtime import Engine
from tests.evaluation.support import toy_task


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_both_modes_on_a_gpu() -> None:
    usual = forecast_task(tiny_forecaster(), toy_task(), context_length=None, batch_tokens=4096)
    model = tiny_forecaster().to("cuda")
    whole = forecast_task(model, toy_task(), context_length=None, batch_tokens=4096)
    with Engine(model, device="cuda") as engine:
        streamed = stream_task(engine, toy_task(), context_length=None)
    scale = np.abs(usual).max()
    assert np.abs(whole - usual).max() < 1e-3 * scale
    assert np.abs(streamed - usual).max() < 1e-3 * scale
