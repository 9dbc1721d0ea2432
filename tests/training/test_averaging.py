"""The weight average: its profile, its window, its state."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kssm.training.averaging import AverageConfig, WeightAverage


def followed(config: AverageConfig, path: torch.Tensor) -> tuple[WeightAverage, nn.Module]:
    """The average after the only weight has taken the values of ``path``."""
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, config)
    for step, value in enumerate(path.tolist(), start=1):
        nn.init.constant_(model.weight, value)
        average.update(step)
    return average, model


def value(average: WeightAverage, model: nn.Module) -> float:
    return float(average.weights(model)["weight"])


@pytest.mark.parametrize("share", [0.03, 0.1, 0.25])
def test_the_window_has_the_promised_width(share: float) -> None:
    steps = 3000
    time = torch.arange(1, steps + 1, dtype=torch.float64)
    config = AverageConfig(share=share, every=1)
    mean = value(*followed(config, time))
    square = value(*followed(config, time**2 / steps)) * steps
    assert (square - mean**2) ** 0.5 / steps == pytest.approx(share, rel=0.02)


def test_the_widest_window_is_a_plain_mean() -> None:
    assert AverageConfig(share=0.28).power() < 0.25


def test_only_every_so_many_steps_count() -> None:
    path = torch.tensor([9.0, 9.0, 2.0, 9.0, 9.0, 2.0])
    assert value(*followed(AverageConfig(share=0.1, every=3), path)) == pytest.approx(2.0)


def test_buffers_come_from_the_model() -> None:
    model = nn.BatchNorm1d(2)
    average = WeightAverage(model, AverageConfig())
    assert model.running_mean is not None
    model.running_mean.fill_(5.0)
    weights = average.weights(model)
    assert weights.keys() == model.state_dict().keys()
    assert weights["running_mean"].tolist() == [5.0, 5.0]


def test_state_round_trip() -> None:
    average, model = followed(AverageConfig(every=1), torch.linspace(0.0, 1.0, 20))
    other = WeightAverage(model, AverageConfig(every=1))
    other.load_state_dict(average.state_dict())
    for step in (21, 22):
        average.update(step)
        other.update(step)
    assert value(other, model) == value(average, model)
