"""The objective: causal inputs, right targets, sane weights, gradients everywhere."""

from __future__ import annotations

import torch

from kssm.forecast import scaler
from kssm.forecast.testing import tiny_forecaster
from kssm.training.loss import MAX_TARGET, Objective, read_loss, tokenise

HORIZON = 16
EVERY = slice(0, None, 1)


def walks(rows: int = 3, length: int = 50) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, length, generator=generator).cumsum(1)


def test_targets_are_the_future_in_the_units_of_the_read_position() -> None:
    x = walks()
    tokens = tokenise(x, torch.ones_like(x, dtype=torch.bool), HORIZON, reads=EVERY)
    fresh = torch.zeros(3, len(scaler.FIELDS), dtype=torch.float64)
    path, _ = scaler.scan(fresh, x.double(), torch.ones_like(x).double())
    expected = scaler.normalise(x[:, 30 + 5].double(), path[:, 30])
    assert torch.allclose(tokens.targets[:, 30, 4].double(), expected, atol=1e-5)
    assert tokens.targets[:, 40, 9:].isnan().all()
    assert tokens.targets[:, 40, :9].isfinite().all()
    assert tokens.targets.nan_to_num().abs().max() <= MAX_TARGET


def test_hidden_samples_are_targets_but_never_inputs() -> None:
    x = walks()
    visible = torch.ones_like(x, dtype=torch.bool)
    visible[:, 20:] = False
    changed = torch.where(visible, x, x + 100.0)
    a = tokenise(x, visible, HORIZON, reads=EVERY)
    b = tokenise(changed, visible, HORIZON, reads=EVERY)
    assert torch.equal(a.features, b.features)
    assert not torch.equal(a.targets[:, 20:30], b.targets[:, 20:30])


def test_thinned_series_keep_their_time() -> None:
    x = walks(1, 12)
    kept = torch.tensor([[0, 1, 4, 5, 9]])
    seen = torch.ones_like(x, dtype=torch.bool)
    tokens = tokenise(x, seen, 2, reads=EVERY, kept=kept)
    assert tokens.dt is not None
    assert tokens.dt.tolist() == [[1, 1, 3, 1, 4]]
    fresh = torch.zeros(1, len(scaler.FIELDS), dtype=torch.float64)
    path, _ = scaler.scan(fresh, x[:, [0, 1, 4]].double(), torch.ones(1, 3).double())
    expected = scaler.normalise(x[:, [5, 6]].double(), path[:, -1:])
    assert torch.allclose(tokens.targets[0, 2].double(), expected[0], atol=1e-5)


def test_constant_stretches_and_first_samples_do_not_count() -> None:
    x = torch.cat([torch.full((1, 20), 3.0), walks(1, 20)], dim=1)
    seen = torch.ones_like(x, dtype=torch.bool)
    weights = tokenise(x, seen, 2, reads=EVERY).weights[0]
    assert (weights[:20] == 0).all()
    assert (weights[22:] > 0).all()


def test_loss_is_the_pinball_loss() -> None:
    model = tiny_forecaster()
    hidden = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    last = torch.zeros(2, 3)
    targets = torch.randn(2, 3, HORIZON, generator=torch.Generator().manual_seed(1))
    targets[0, 0, 3:] = torch.nan
    sums = read_loss(model.head, hidden, last, targets, torch.ones(2, 3))
    quantiles = model.head(hidden, last).detach()
    total, count = 0.0, 0
    for i, level in enumerate(model.config.levels):
        error = targets - quantiles[..., i]
        loss = torch.where(error >= 0, level * error, (level - 1) * error)
        known = targets.isfinite()
        total += 2 * float(loss[known].sum())
        count += int(known.sum())
    assert sums.known == sums.weight == count // 9
    assert torch.isclose(sums.plain.detach(), torch.tensor(total / 9), rtol=1e-5)
    assert torch.isclose(sums.weighted, sums.plain)


def test_gradients_reach_every_parameter() -> None:
    model = tiny_forecaster().requires_grad_()
    x = walks()
    tokens = tokenise(x, torch.ones_like(x, dtype=torch.bool), HORIZON, reads=slice(1, None, 2))
    Objective(model)(tokens, slice(1, None, 2)).weighted.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
