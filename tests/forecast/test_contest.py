"""The contest between resolutions: what is judged, remembered and made of it."""

import math

import pytest
import torch

from kssm.forecast import contest
from kssm.forecast.distribution import LEVELS

M = 16


def stats(location: float, scale: float, count: float = 100.0) -> torch.Tensor:
    return torch.tensor([[count, location, scale**2, 1.0, 0.0, location, 0.0]], dtype=torch.float64)


def forecasts(*medians: float) -> torch.Tensor:
    """[1, R, M, 3]: each rival forecasts its median always, one unit either side of it."""
    spread = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    return (torch.tensor(medians).double()[:, None, None] + spread).expand(-1, M, -1)[None]


def test_losses_are_pinball_in_scales_of_the_row() -> None:
    kept = contest.rivals(forecasts(10.0, 14.0), stats(10.0, 2.0))
    block = torch.full((1, M), 14.0, dtype=torch.float64)
    loss, valid = contest.judge(block, *kept)
    assert valid.tolist() == [[True, True]]
    levels = [LEVELS[i] for i in contest.JUDGED]
    first = sum(p * e for p, e in zip(levels, (2.5, 2.0, 1.5), strict=True)) / 3
    second = (levels[0] * 0.5 + (1 - levels[2]) * 0.5) / 3
    expected = torch.tensor([[[first] * 2, [second] * 2]], dtype=torch.float64)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


def test_missing_samples_and_cold_rows_are_not_judged() -> None:
    warm = contest.rivals(forecasts(0.0, 0.0), stats(0.0, 1.0))
    block = torch.full((1, M), math.nan, dtype=torch.float64)
    block[0, M - 1] = 5.0
    assert contest.judge(block, *warm)[1].tolist() == [[False, True]]
    cold = contest.rivals(forecasts(0.0, 0.0), stats(0.0, 1.0, count=3.0))
    assert contest.judge(torch.ones(1, M).double(), *cold)[1].tolist() == [[False, False]]


FRESH = torch.zeros(1, 1, dtype=torch.int64)


def judged(ratio: float, blocks: int, seen: int = 100) -> torch.Tensor:
    """Sums after ``blocks`` blocks in which the copy's loss was ``ratio`` times the row's."""
    sums = torch.zeros(1, 1, 2, 3, dtype=torch.float64)
    loss = torch.tensor([[[1.0, 1.0], [ratio, ratio]]], dtype=torch.float64)
    valid = torch.ones(1, 2, dtype=torch.bool)
    for _ in range(blocks):
        sums = contest.fold(sums, loss, valid, torch.tensor([seen]), torch.tensor([4]))
    return sums


def test_an_unjudged_or_immature_copy_weighs_nothing() -> None:
    for sums in (judged(0.1, 0), judged(0.1, 50, seen=3)):
        share = contest.weights(sums, (4,), 2 * M, M, FRESH)
        assert share[0, 1].tolist() == [0.0] * (2 * M)
        assert share[0, 0].tolist() == [1.0] * (2 * M)


def test_better_copies_weigh_more_and_doubt_fades() -> None:
    def near(ratio: float, blocks: int) -> float:
        return float(contest.weights(judged(ratio, blocks), (4,), 1, M, FRESH)[0, 1, 0])

    assert near(0.9, 400) > 0.9 > near(1.0, 400) > near(1.1, 400)
    assert near(1.0, 400) > near(1.0, 4) > near(1.0, 1) > 0.0
    assert near(3.0, 400) < 1e-12


def test_weights_add_up_and_favour_reach_far_ahead() -> None:
    share = contest.weights(judged(1.0, 400), (4,), 8 * M, M, FRESH)
    torch.testing.assert_close(share.sum(1), torch.ones(1, 8 * M, dtype=torch.float64))
    assert bool((share[0, 1].diff() >= 0).all())
    assert float(share[0, 1, -1]) > 0.75 > float(share[0, 1, 0])


def test_a_stale_copy_loses_most_where_little_is_looked_ahead() -> None:
    fresh = contest.weights(judged(1.0, 400), (4,), 8 * M, M, FRESH)[0, 1]
    stale = contest.weights(judged(1.0, 400), (4,), 8 * M, M, FRESH + 3)[0, 1]
    odds = (stale / (1 - stale)) / (fresh / (1 - fresh))
    ahead = torch.arange(1, 8 * M + 1, dtype=torch.float64)
    torch.testing.assert_close(odds, (1 + 3 / ahead) ** -contest.STALENESS)


def test_one_terrible_or_constant_past_stays_finite() -> None:
    for own, base in ((0.0, 0.0), (1e6, 0.0), (0.0, 1e6)):
        sums = torch.tensor([own, base, 9.0], dtype=torch.float64).expand(1, 1, 2, 3)
        share = contest.weights(sums, (4,), 4, M, FRESH)
        assert bool(share.isfinite().all())


def test_the_spread_narrows_only_where_forecasts_are_mixed() -> None:
    alone = contest.narrowing(torch.tensor([[[1.0], [0.0]]]))
    evenly = contest.narrowing(torch.tensor([[[0.5], [0.5]]]))
    assert float(alone) == 1.0
    assert float(evenly) == pytest.approx(1.0 - contest.OVERLAP / 2)
