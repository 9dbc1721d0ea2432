"""Linear prediction and periods against slow, obvious computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kssm.audio.analysis import (
    autocorrelation,
    find_period,
    levinson,
    predict_linearly,
    similarity,
    solve,
)
from kssm.audio.outlook import extrapolate
from tests.audio.support import TINY, sound


def test_autocorrelation_is_the_sum_of_products() -> None:
    x = sound(50, 3)
    got = autocorrelation(x, 7)
    want = torch.stack([(x[:, k:] * x[:, : 50 - k]).sum(1) for k in range(8)], 1)
    torch.testing.assert_close(got, want)


def test_levinson_solves_the_normal_equations() -> None:
    products = autocorrelation(sound(200, 4, seed=1), 8)
    taps, reflection = levinson(products)
    lags = np.abs(np.subtract.outer(np.arange(8), np.arange(8)))
    for row, own in zip(products.numpy(), taps.numpy(), strict=True):
        matrix = row[lags] + np.eye(8) * (row[0] * 1e-5 + 1e-9)
        np.testing.assert_allclose(own, np.linalg.solve(matrix, row[1:]), rtol=1e-4)
    torch.testing.assert_close(reflection[:, -1], taps[:, -1])
    assert (reflection.abs() < 1).all()
    torch.testing.assert_close(solve(products), taps, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_solved_is_found_step_by_step() -> None:
    """Autocorrelations that no signal has: the matrix is indefinite."""
    products = torch.tensor([[1.0, -1.5, 1.5, 0.3]])
    torch.testing.assert_close(solve(products), levinson(products)[0])
    assert solve(products).isfinite().all()


def test_silence_predicts_silence() -> None:
    linear = predict_linearly(torch.zeros(2, TINY.history), TINY)
    assert all(entry.isfinite().all() for entry in linear)
    assert not linear.long.any()


def test_the_period_of_a_pulse_train_is_found() -> None:
    windows = torch.zeros(2, TINY.history)
    windows[0] = torch.zeros(TINY.history).index_fill_(0, torch.arange(63, -1, -11), 1.0)
    windows[1] = torch.zeros(TINY.history).index_fill_(0, torch.arange(60, -1, -17), 1.0)
    level = predict_linearly(windows, TINY).level
    period = find_period(windows, level, TINY)
    assert period.lag.tolist() == [11, 17]


def test_likeness_is_the_normalised_correlation() -> None:
    x = sound(TINY.history, 2, seed=3).float()
    got = similarity(x, TINY)
    width = TINY.longest_lag
    for column, lag in enumerate(range(TINY.shortest_lag, width + 1)):
        recent, earlier = x[:, -width:], x[:, -width - lag : -lag]
        want = (recent * earlier).sum(1) / (recent.norm(dim=1) * earlier.norm(dim=1))
        torch.testing.assert_close(got[:, column], want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("count", [1, 5, 8, 30])
def test_extrapolation_runs_the_predictor_on(count: int) -> None:
    x = sound(40, 3, seed=2).float()
    taps = levinson(autocorrelation(x, 8))[0]
    path = x
    for _ in range(count):
        path = torch.cat([path, (path[:, -8:].flip(1) * taps).sum(1, keepdim=True)], 1)
    torch.testing.assert_close(extrapolate(x, taps, count), path[:, 40:], atol=1e-5, rtol=1e-4)
