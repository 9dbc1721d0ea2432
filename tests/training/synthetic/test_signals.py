"""Shared building blocks."""

from __future__ import annotations

import pytest
import torch

from kssm.training.synthetic import signals
from kssm.training.synthetic.sampler import Sampler


def sampler(rows: int = 64, length: int = 512, seed: int = 0) -> Sampler:
    return Sampler(rows, length, False, torch.Generator().manual_seed(seed), torch.device("cpu"))


def roughness(x: torch.Tensor) -> torch.Tensor:
    """Deviation of the differences over that of the values."""
    return x.diff(dim=1).std(1) / x.std(1)


@pytest.mark.parametrize("noise", [signals.coloured_noise, signals.slow_noise])
def test_noises_are_standardised(noise) -> None:
    x = noise(sampler())
    assert x.shape == (64, 512)
    assert x.mean(1).abs().max() < 1e-3
    assert (x.std(1) - 1.0).abs().max() < 0.02


def test_slow_noise_is_smoother_than_coloured_noise() -> None:
    slow, coloured = signals.slow_noise(sampler()), signals.coloured_noise(sampler())
    assert roughness(slow).median() < 0.5 * roughness(coloured).median()


def test_noise_is_not_periodic_over_the_window() -> None:
    x = signals.slow_noise(sampler(256))
    seam = (x[:, 0] - x[:, -1]).abs().median()
    assert seam > 5.0 * x.diff(dim=1).abs().median()


def test_first_order_noise_has_the_correlation_asked_for() -> None:
    rows = sampler(1, 4096)
    frequency = torch.linspace(0.0, torch.pi, 4097)[None]
    gain = signals._ar1_gain(frequency, torch.tensor([[10.0]]))
    expected = (1.0 - torch.exp(torch.tensor(-0.1))).reciprocal()
    assert gain[0, 0].item() == pytest.approx(expected.item(), rel=1e-4)
    x = signals._shaped_noise(rows, gain)
    correlation = (x[:, 1:] * x[:, :-1]).mean().item()
    assert correlation == pytest.approx(0.905, abs=0.03)


def test_heavy_noise_has_heavy_tails_in_some_rows() -> None:
    x = signals.standardise(signals.heavy_noise(sampler(200, 2048)))
    kurtosis = x.pow(4).mean(1)
    assert (kurtosis < 3.5).float().mean() > 0.4
    assert (kurtosis > 6.0).float().mean() > 0.15


def test_events_come_at_the_rate_asked_for() -> None:
    hits = signals.events(sampler(400, 512), torch.full((400, 1), 8.0))
    assert set(hits.unique().tolist()) == {0.0, 1.0}
    assert hits.sum(1).mean().item() == pytest.approx(8.0, abs=0.5)


def test_exponential_filter_equals_its_recursion() -> None:
    x = sampler(3, 100).normal(100)
    constant = torch.tensor([[2.0], [7.0], [30.0]])
    state = torch.zeros(3, 1)
    expected = []
    for t in range(100):
        state = state * torch.exp(-1.0 / constant) + x[:, t : t + 1]
        expected.append(state)
    torch.testing.assert_close(
        signals.exponential_filter(x, constant), torch.cat(expected, 1), atol=1e-4, rtol=1e-4
    )


def test_levels_are_piecewise_constant() -> None:
    x = signals.levels(sampler(100, 512), torch.full((100, 1), 5.0))
    changes = (x.diff(dim=1) != 0.0).sum(1).float()
    assert changes.mean().item() == pytest.approx(5.0, abs=1.0)


def test_normalisers_leave_constant_rows_finite() -> None:
    constant = torch.full((2, 50), 3.0)
    assert torch.equal(signals.standardise(constant), torch.zeros(2, 50))
    assert torch.equal(signals.peak_normalise(torch.zeros(2, 50)), torch.zeros(2, 50))
