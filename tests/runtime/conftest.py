"""Fixtures of the runtime's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kssm.forecast.testing import tiny_forecaster
from kssm.runtime import Engine
from kssm.runtime.contract import Forecaster
from tests.runtime.fakes import SmoothingForecaster
from tests.runtime.support import CONFIG


@pytest.fixture(scope="module", params=["smoothing", "tiny", "resolutions"])
def forecaster(request: pytest.FixtureRequest) -> Forecaster:
    """The same tests on a transparent fake and on real, small models."""
    if request.param == "smoothing":
        return SmoothingForecaster()
    return tiny_forecaster(thinning=(4, 16) if request.param == "resolutions" else ())


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def model() -> SmoothingForecaster:
    return SmoothingForecaster()


@pytest.fixture
def engine(model: SmoothingForecaster) -> Iterator[Engine]:
    """Not started: what a test submits before ``start`` arrives as one."""
    engine = Engine(model, CONFIG)
    yield engine
    engine.close(drain=False)


@pytest.fixture
def running(engine: Engine) -> Engine:
    engine.start()
    return engine
