"""Interpolated quantiles and tail probabilities against the normal distribution."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kssm.errors import InvalidInputError
from kssm.forecast.distribution import (
    LEVELS,
    MEDIAN,
    check_levels,
    interpolate,
    tail_probability,
)

NORMAL = torch.special.ndtri(torch.tensor(LEVELS, dtype=torch.float64))


def test_given_levels_come_back_unchanged() -> None:
    assert torch.equal(interpolate(NORMAL, LEVELS), NORMAL)


@pytest.mark.parametrize("level", [0.001, 0.05, 0.15, 0.5, 0.85, 0.95, 0.9999])
def test_normal_quantiles(level: float) -> None:
    expected = float(torch.special.ndtri(torch.tensor(level, dtype=torch.float64)))
    assert float(interpolate(NORMAL, [level])) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("x", [-5.0, -1.5, -0.7, 0.0, 0.3, 1.28, 2.0, 4.0])
def test_normal_tails(x: float) -> None:
    expected = math.erfc(abs(x) / math.sqrt(2.0))
    point = torch.tensor(x, dtype=torch.float64)
    assert float(tail_probability(NORMAL, point)) == pytest.approx(expected, rel=0.06)


@given(st.lists(st.floats(0.01, 20), min_size=9, max_size=9), st.floats(-100, 100))
def test_tails_are_probabilities_that_fall_outwards(gaps: list[float], x: float) -> None:
    quantiles = torch.tensor(gaps, dtype=torch.float64).cumsum(0)
    outwards = math.copysign(1.0, x) * torch.tensor([0.0, 0.5, 5.0], dtype=torch.float64)
    tails = tail_probability(quantiles.expand(3, 9), quantiles[MEDIAN] + x + outwards)
    assert ((tails >= 0) & (tails <= 1)).all()
    assert (tails.diff() <= 1e-12).all()


def test_degenerate_forecast_flags_any_change() -> None:
    quantiles = torch.full((9,), 3.0, dtype=torch.float64)
    assert float(tail_probability(quantiles, torch.tensor(4.0).double())) < 1e-12
    assert float(tail_probability(quantiles, torch.tensor(3.0).double())) > 0.1


@pytest.mark.parametrize("levels", [[], [0.0], [1.0], [-0.1], [0.5, 1.5], [float("nan")]])
def test_bad_levels(levels: list[float]) -> None:
    with pytest.raises(InvalidInputError) as error:
        check_levels(levels)
    assert error.value.code == "invalid_quantiles"


@given(st.floats(1.3, 35.0))
def test_tails_are_as_precise_above_as_below(distance: float) -> None:
    points = torch.tensor([-distance, distance], dtype=torch.float64)
    tails = tail_probability(NORMAL.expand(2, 9), points)
    expected = math.erfc(distance / math.sqrt(2.0))
    assert tails.tolist() == pytest.approx([expected, expected], rel=1e-6)
