"""The scaler's recursion against plain definitions, and its behaviour on hard signals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kssm.forecast import scaler


def run(values: np.ndarray, dt: float = 1.0) -> torch.Tensor:
    x = torch.from_numpy(np.asarray(values, dtype=np.float64)).unsqueeze(0)
    fresh = torch.zeros(1, len(scaler.FIELDS), dtype=torch.float64)
    path, _ = scaler.scan(fresh, x, torch.full_like(x, dt))
    return path[0]


def field(path: torch.Tensor, name: str) -> np.ndarray:
    return path[:, scaler.FIELDS.index(name)].numpy()


def test_matches_cumulative_moments_while_the_memory_fills() -> None:
    x = np.random.default_rng(0).normal(1e6, 1.0, 400)
    path = run(x)
    for n in (1, 2, 17, 400):
        assert field(path, "mean")[n - 1] == pytest.approx(x[:n].mean(), rel=1e-12)
        assert field(path, "variance")[n - 1] == pytest.approx(x[:n].var(), rel=1e-6, abs=1e-12)
    assert field(path, "difference")[-1] == pytest.approx(np.square(np.diff(x)).mean(), rel=1e-9)
    assert field(path, "last")[-1] == x[-1]


def test_follows_a_new_regime_after_the_memory() -> None:
    x = np.concatenate([np.random.default_rng(0).normal(0, 1, 3000), np.full(6000, 50.0)])
    path = run(x)
    assert field(path, "mean")[-1] == pytest.approx(50.0, abs=0.01)
    assert field(path, "variance")[-1] < 0.1


def test_one_wild_sample_hardly_moves_the_scale() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(20.0, 1.0, 1000)
    clean = field(run(x), "variance")[-1]
    x[900] = -9999.0
    assert field(run(x), "variance")[-1] < 2.0 * clean


def test_lasting_jump_of_a_thousand_scales_is_followed_quickly() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 1, 600), rng.normal(1000, 1, 60)])
    deviation = np.sqrt(field(run(x), "variance"))
    assert deviation[600] < 2.0
    assert deviation[-1] > 100.0


def test_missing_samples_only_let_time_pass() -> None:
    x = np.array([1.0, 3.0, np.nan, np.nan, 2.0])
    path = run(x, dt=2.0)
    assert field(path, "gap").tolist() == [0.0, 0.0, 2.0, 4.0, 0.0]
    assert field(path, "count").tolist() == [1, 2, 2, 2, 3]
    assert torch.equal(path[1, :6], path[3, :6])
    assert field(path, "last")[3] == 3.0


def test_update_equals_scan_bit_for_bit() -> None:
    x = torch.randn(4, 30, generator=torch.Generator().manual_seed(0)).double() * 7
    x[:, 11] = torch.nan
    stats = torch.zeros(4, len(scaler.FIELDS), dtype=torch.float64)
    path, final = scaler.scan(stats, x, torch.ones_like(x))
    for t in range(30):
        stats = scaler.update(stats, x[:, t], torch.ones(4, dtype=torch.float64))
        assert torch.equal(stats, path[:, t])
    assert torch.equal(final, stats)


def test_features_see_only_the_past_and_are_bounded() -> None:
    x = torch.randn(1, 40, generator=torch.Generator().manual_seed(0)).double()
    x[0, 20:] *= 1e20
    fresh = torch.zeros(1, 1, len(scaler.FIELDS), dtype=torch.float64)
    steps = torch.ones_like(x)
    path, _ = scaler.scan(fresh[:, 0], x, steps)
    before = torch.cat([fresh, path[:, :-1]], dim=1)
    whole = scaler.features(x, steps, before, path)
    part = scaler.features(x[:, :20], steps[:, :20], before[:, :20], path[:, :20])
    assert torch.equal(whole[:, :20], part)
    assert whole.abs().max() < 100


@pytest.mark.parametrize("offset", [0.0, 1e12, -1e30])
def test_normalise_inverts(offset: float) -> None:
    stats = run(offset + np.array([1.0, 4.0, 2.0, 8.0]) * max(1.0, abs(offset) * 1e-3))[-1:]
    z = torch.linspace(-9, 9, 19, dtype=torch.float64).reshape(1, 19, 1)
    x = scaler.denormalise(z, stats)
    location, scale = scaler.location_and_scale(stats)
    assert torch.allclose(torch.asinh((x - location) / scale), z, rtol=1e-4, atol=1e-4)
    assert (x.squeeze().diff() > 0).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernel_equals_numpy() -> None:
    x = torch.randn(70, 133, generator=torch.Generator().manual_seed(0)).double().cumsum(1)
    x[torch.rand(70, 133, generator=torch.Generator().manual_seed(1)) < 0.2] = torch.nan
    x[3, 60] = 1e8
    dt = 0.5 + torch.rand(70, 133, generator=torch.Generator().manual_seed(2)).double()
    stats, _ = scaler.scan(torch.zeros(70, 7, dtype=torch.float64), x[:, :9], dt[:, :9])
    start = stats[:, -1].contiguous()
    expected, _ = scaler.scan(start, x, dt)
    actual, _ = scaler.scan(start.cuda(), x.cuda(), dt.cuda())
    assert torch.allclose(actual.cpu(), expected, rtol=1e-12, atol=1e-14)
