"""Draws, apportioning and mixing of rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kssm.training.synthetic.sampler import Sampler, apportion, device_generator, mixture

CPU = torch.device("cpu")


def sampler(rows: int, length: int = 64, seed: int = 0) -> Sampler:
    return Sampler(rows, length, False, torch.Generator().manual_seed(seed), CPU)


@given(
    rows=st.integers(0, 300),
    weights=st.lists(st.floats(0.0, 10.0), min_size=1, max_size=9).filter(lambda w: sum(w) > 0.1),
)
@settings(max_examples=60, deadline=None)
def test_apportion_is_exact_and_proportional(rows: int, weights: list[float]) -> None:
    counts = apportion(rows, weights)
    assert sum(counts) == rows
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - rows * weight / sum(weights)) <= 1.0


def test_mixture_keeps_rows_and_inputs_aligned() -> None:
    label = torch.arange(40.0)[:, None]
    options = [(3.0, lambda _, x: x), (1.0, lambda _, x: -x)]
    mixed = mixture(sampler(40), options, label)
    assert torch.equal(mixed.abs(), label)
    assert int((mixed < 0.0).sum()) in (10, 9)  # row 0 has no sign


def test_mixture_spreads_an_option_over_all_rows() -> None:
    options = [(1.0, lambda s: torch.zeros(s.rows, 1)), (1.0, lambda s: torch.ones(s.rows, 1))]
    mixed = mixture(sampler(1000), options).squeeze(1)
    assert abs(float(mixed[:500].mean()) - 0.5) < 0.06


def test_small_groups_draw_their_option_without_bias() -> None:
    options = [(0.9, lambda s: torch.zeros(s.rows, 1)), (0.1, lambda s: torch.ones(s.rows, 1))]
    draws = torch.cat([mixture(sampler(1, seed=seed), options) for seed in range(400)])
    assert 0.05 < float(draws.mean()) < 0.16


def test_choice_follows_the_weights() -> None:
    drawn = sampler(4000).choice([1.0, 0.0, 3.0])
    assert torch.bincount(drawn, minlength=3).tolist()[1] == 0
    assert float((drawn == 2).float().mean()) == pytest.approx(0.75, abs=0.03)


def test_draws_have_their_distribution() -> None:
    rows = sampler(500)
    assert rows.uniform(-1.0, 3.0, 40).mean().item() == pytest.approx(1.0, abs=0.05)
    logs = rows.log_uniform(1.0, 100.0, 40).log10()
    assert logs.min().item() >= 0.0
    assert logs.max().item() <= 2.0
    assert logs.mean().item() == pytest.approx(1.0, abs=0.03)
    assert rows.gate(0.3, 40).mean().item() == pytest.approx(0.3, abs=0.02)
    assert rows.chance(0.3).dtype == torch.bool
    whole = rows.integers(2, 5, 10)
    assert set(whole.flatten().tolist()) == {2, 3, 4}


def test_device_generator_is_the_same_object_on_the_same_device() -> None:
    generator = torch.Generator().manual_seed(3)
    assert device_generator(generator, CPU) is generator
