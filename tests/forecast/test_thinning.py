"""Thinned copies of a row: runs, blocks and the way back to the row's own grid."""

import numpy as np
import torch

from kssm.forecast.thinning import (
    ABSENT,
    coarse_length,
    joined,
    last_visible,
    on_own_grid,
    shifted,
)


def test_the_last_visible_sample_of_each_run_is_kept() -> None:
    nan = float("nan")
    runs = torch.tensor([[1.0, 2.0, nan], [nan, nan, 3.0], [4.0, ABSENT, ABSENT], [nan, nan, nan]])
    torch.testing.assert_close(
        last_visible(runs), torch.tensor([2.0, 3.0, 4.0, nan]), equal_nan=True
    )


def test_rows_are_shifted_each_from_its_own_start() -> None:
    sequence = torch.arange(10).reshape(2, 5)
    moved = shifted(sequence, torch.tensor([1, 4]), 3)
    assert moved.tolist() == [[1, 2, 3], [9, 9, 9]]


def test_new_samples_follow_the_unfinished_block() -> None:
    held = torch.tensor([[7.0, 8.0, 9.0, 9.0], [0.0, 0.0, 0.0, 0.0]])
    new = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    blocks = joined(held, torch.tensor([2, 0]), new, torch.tensor([3, 1]), 2)
    assert blocks[0].tolist() == [[7.0, 8.0, 1.0, 2.0], [3.0, 0.0, 0.0, 0.0]]
    assert blocks[1].tolist() == [[4.0, 0.0, 0.0, 0.0], [0.0] * 4]


def test_a_straight_line_comes_back_straight_at_every_age() -> None:
    factor, horizon, now = 4, 11, 20.0
    for age in range(factor):
        count = coarse_length(horizon, factor)
        ahead = factor - age + factor * torch.arange(count, dtype=torch.float64)
        own = on_own_grid(
            (now + ahead).unsqueeze(-1),
            factor,
            torch.tensor(age),
            torch.tensor(now, dtype=torch.float64),
            horizon,
        )
        expected = now + torch.arange(1, horizon + 1, dtype=torch.float64)
        torch.testing.assert_close(own.squeeze(-1), expected)


def test_coarse_samples_keep_their_quantiles() -> None:
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(np.sort(rng.normal(size=(2, 3, 5)), axis=-1))
    own = on_own_grid(coarse, 4, torch.tensor([0, 3]), torch.zeros(2, dtype=torch.float64), 9)
    torch.testing.assert_close(own[0, [3, 7]], coarse[0, :2])
    torch.testing.assert_close(own[1, [0, 4, 8]], coarse[1, :3])
    assert bool((own.diff(dim=-1) >= 0).all())
