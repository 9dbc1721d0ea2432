"""Fine-tuning examples: hidden states are the model's own, targets are what came after."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kssm.forecast import Forecaster, scaler
from kssm.forecast.forecaster import SignalForecaster
from kssm.forecast.testing import tiny_forecaster
from kssm.training.examples import Examples, collect
from kssm.training.hidden import HiddenReader

ORIGINS = [np.array([10, 11, 40]), np.array([5]), np.array([], dtype=np.int64)]


@pytest.fixture(scope="module")
def model() -> SignalForecaster:
    return tiny_forecaster()


def walks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    series = [1e4 + rng.normal(size=size).cumsum() for size in (50, 30, 20)]
    series[0][7] = np.nan
    return series


def gather(model: SignalForecaster, horizon: int) -> Examples:
    reader = HiddenReader(model)
    return collect(reader, walks(), ORIGINS, horizon, model.config.head_horizon)


@torch.no_grad()
def quantiles(model: SignalForecaster, examples: Examples) -> torch.Tensor:
    raw = model.head(examples.hidden, examples.last).double()
    return torch.sinh(raw) * examples.scale[:, None, None] + examples.location[:, None, None]


def test_the_head_on_hidden_states_is_the_forecast(model: SignalForecaster) -> None:
    horizon = model.config.head_horizon
    examples = gather(model, horizon)
    contexts = [walks()[0][:10], walks()[0][:11], walks()[0][:40], walks()[1][:5]]
    expected, _ = Forecaster(model).predict_quantiles(contexts, horizon)
    found = quantiles(model, examples)
    places = [int(np.argmin([np.abs(f - e).max() for f in found.numpy()])) for e in expected]
    assert sorted(places) == [0, 1, 2, 3]
    assert np.allclose(found[places].numpy(), expected, rtol=1e-6)


def test_blocks_beyond_the_head_are_the_roll_out(model: SignalForecaster) -> None:
    horizon = model.config.head_horizon
    reader = HiddenReader(model)
    series = walks()[:1]
    examples = collect(reader, series, [np.array([40])], 3 * horizon, horizon)
    expected, _ = Forecaster(model).predict_quantiles([series[0][:40]], 3 * horizon)
    found = quantiles(model, examples).flatten(0, 1)
    assert np.allclose(found.numpy(), expected[0], rtol=1e-6)


def test_futures_are_what_came_after_and_was_asked_for(model: SignalForecaster) -> None:
    series = walks()[0]
    reader = HiddenReader(model)
    examples = collect(reader, [series], [np.array([6, 46])], 5, model.config.head_horizon)
    expected = np.full((2, model.config.head_horizon), np.nan)
    expected[0, :5] = series[6:11]
    expected[1, :4] = series[46:]
    assert np.array_equal(examples.future.numpy(), expected, equal_nan=True)
    path, _ = scaler.scan(
        torch.zeros(1, len(scaler.FIELDS), dtype=torch.float64),
        torch.from_numpy(series[None]),
        torch.ones(1, 50, dtype=torch.float64),
    )
    location, scale = scaler.location_and_scale(path[0, [5, 45]])
    assert torch.allclose(examples.location, location)
    assert torch.allclose(examples.scale, scale)


def test_examples_are_indexed_and_joined(model: SignalForecaster) -> None:
    examples = gather(model, 4)
    assert len(examples) == 4
    picked = examples[torch.tensor([2, 0])]
    assert torch.equal(picked.hidden[1], examples.hidden[0])
    assert len(Examples.join([examples, picked])) == 6
