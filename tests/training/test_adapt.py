"""Training on own series: crops are of them, what can be learned is, and time is kept to."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch

from kssm.forecast.testing import tiny_forecaster
from kssm.training.adapt import SETTLED, AdaptConfig, Crops, adapt, blend
from kssm.training.assess import Windows, crps

QUICK = AdaptConfig(learning_rate=3e-3, steps=40, length=200, batch_tokens=800)


def waves(length: int = 600) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    time_axis = np.arange(length)
    series = [50 + 10 * np.sin(time_axis / 2 + row) + rng.normal(size=length) for row in range(3)]
    series[0][5] = np.nan
    return series


def silent(_share: float) -> None:
    """Report nothing."""


def test_what_can_be_learned_is_learned_at_every_resolution() -> None:
    model, series = tiny_forecaster(thinning=(4,)), waves()
    windows = Windows(series, [np.array([500, 540])] * 3, 20)
    before = crps(model, windows)
    fingerprint = model.fingerprint
    told: list[float] = []
    tuned = adapt(model, [x[:500] for x in series], 16, QUICK, math.inf, told.append)
    assert crps(tuned, windows) < 0.7 * before
    assert model.fingerprint == fingerprint
    assert tuned.config == model.config
    assert not any(p.requires_grad for p in tuned.parameters())
    assert told == sorted(told)
    assert told[-1] == 1.0
    again = adapt(model, [x[:500] for x in series], 16, QUICK, math.inf, silent)
    assert again.fingerprint == tuned.fingerprint


def test_a_deadline_shortens_the_training() -> None:
    model = tiny_forecaster()
    told: list[float] = []
    tuned = adapt(model, waves(), 16, QUICK, time.perf_counter() - 1.0, told.append)
    assert told == [1.0]
    assert tuned.fingerprint != model.fingerprint


def test_blending_goes_from_one_to_the_other() -> None:
    start, end = tiny_forecaster(0), tiny_forecaster(1)
    half = blend(start, end, 0.5)
    middle = (start.head.out.weight + end.head.out.weight) / 2
    assert torch.allclose(half.head.out.weight, middle)
    assert blend(start, end, 0.0).fingerprint == start.fingerprint
    assert torch.equal(blend(start, end, 1.0).embed.weight, end.embed.weight)


def test_crops_are_pieces_of_the_series_and_of_their_copies() -> None:
    series = [np.arange(1000.0), 5000.0 + np.arange(40.0)]
    crops = Crops(series, 50, (4,), AdaptConfig(length=100, batch_tokens=400, thinned=0.5))
    seen: set[tuple[float, int]] = set()
    for _ in range(20):
        batch = crops.draw()
        assert batch.values.shape == (4, 100)
        for values, first in zip(batch.values, batch.first.tolist(), strict=True):
            known = values[values.isfinite()]
            steps = known.diff().unique().tolist()
            seen |= {(step, batch.reach) for step in steps}
            assert 50 <= len(known) <= 100 or (known[0] >= 5000 and 20 <= len(known) <= 40)
            from_start = known[0] % 1000 < steps[0]
            assert first == (SETTLED // 8 if from_start else 25)
    assert seen == {(1.0, 50), (4.0, 14)}


def test_loud_series_weigh_more() -> None:
    series = [np.sin(np.arange(100.0)), 100 * np.sin(np.arange(100.0))]
    alike = Crops(series, 9, (), AdaptConfig(loudness=0.0)).draw()
    assert (alike.weights == 1.0).all()
    loud = Crops(series, 9, (), AdaptConfig(loudness=0.5, length=50)).draw()
    ratio = float(loud.weights.max() / loud.weights.min())
    assert ratio == pytest.approx(10.0, rel=1e-5)
