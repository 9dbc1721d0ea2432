"""Fixtures of the runtime's tests."""

from __future__ import annotations

import pytest
import torch

from kssm.forecast.testing import tiny_forecaster
from kssm.runtime.contract import Forecaster
from tests.runtime.fakes import SmoothingForecaster


@pytest.fixture(scope="module", params=["smoothing", "tiny"])
def forecaster(request: pytest.FixtureRequest) -> Forecaster:
    """The same tests on a transparent fake and on a real, small model."""
    return SmoothingForecaster() if request.param == "smoothing" else tiny_forecaster()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
