"""The optimisers: batched Muon against torch's, schedule, sick gradients."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from kssm.forecast.testing import tiny_forecaster
from kssm.training.muon import Muon, orthogonalise
from kssm.training.optimizer import OptimizerConfig, Optimizers, scheduled_rate

SHAPES = ((12, 20), (12, 20), (20, 12), (12, 12), (12, 20))


def matrices(seed: int) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def test_batched_muon_is_muon() -> None:
    ours, theirs = matrices(0), matrices(0)
    batched = Muon(ours, weight_decay=0.1)
    plain = torch.optim.Muon(theirs, lr=0.0, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        rate = 0.02 * (step + 1)
        plain.param_groups[0]["lr"] = rate
        for a, b, gradient in zip(ours, theirs, matrices(step + 1), strict=True):
            a.grad = b.grad = gradient.detach()
        batched.step(rate)
        plain.step()
    for a, b, start in zip(ours, theirs, matrices(0), strict=True):
        moved = (b - start).norm()
        assert (a - b).norm() < 0.01 * moved  # both round to bf16 inside


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    x = torch.randn(3, 30, 8, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(x).float())
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_every_parameter_moves_and_state_goes_on() -> None:
    models = [tiny_forecaster().requires_grad_() for _ in range(2)]
    optimizers = [Optimizers(model, OptimizerConfig()) for model in models]
    for _ in range(2):
        _random_gradients(models[0], 1)
        optimizers[0].step(1e-3)
    models[1].load_state_dict(models[0].state_dict())
    optimizers[1].load_state_dict(deepcopy(optimizers[0].state_dict()))
    for model, optimizer in zip(models, optimizers, strict=True):
        _random_gradients(model, 2)
        optimizer.step(1e-3)
    start = tiny_forecaster()
    parameters = [dict(model.named_parameters()) for model in (*models, start)]
    for name, parameter in parameters[0].items():
        assert torch.equal(parameter, parameters[1][name]), name
        assert not torch.equal(parameter, parameters[2][name]), name
        assert parameter.grad is None


def test_a_gradient_that_is_not_finite_counts_as_zero() -> None:
    model = tiny_forecaster().requires_grad_()
    optimizer = Optimizers(model, OptimizerConfig(weight_decay=0.0))
    before = [p.detach().clone() for p in model.parameters()]
    _random_gradients(model, 0)
    gradient = model.embed.weight.grad
    assert gradient is not None
    gradient[0, 0] = torch.nan
    assert not optimizer.step(1e-3).isfinite()
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize(
    ("step", "progress", "expected"),
    [(0, 0.0, 0.1), (9, 0.1, 1.0), (500, 0.5, 1.0), (500, 0.75, 0.5), (900, 1.0, 0.0)],
)
def test_schedule(step: int, progress: float, expected: float) -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=10, cooldown=0.5)
    assert scheduled_rate(config, step, progress) == pytest.approx(expected)


def _random_gradients(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
