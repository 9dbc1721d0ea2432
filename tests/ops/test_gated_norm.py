"""Norms with skip, gate and residual: kernels against float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from kssm.ops import joint
from kssm.ops.gated_norm import gated_norm, residual_norm
from tests.ops.kernels import draw, worst
from tests.ops.problems import DEVICE

launch = pytest.importorskip("kssm.ops.gated_norm.kernel_launch")

EPS = 1e-6
SHAPES = [(2, 5, 48), (2, 5, 48), (48,), (48,)]
Run = Callable[..., tuple[Tensor, ...]]


def values_and_gradients(run: Run, inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Results and all gradients of a weighted sum of them."""
    device = "cpu" if dtype == torch.float64 else DEVICE
    leaves = [t.to(device, dtype).requires_grad_() for t in inputs]
    outputs = run(*leaves)
    weights = [draw(*t.shape, seed=80 + i).to(t) for i, t in enumerate(outputs)]
    return [*outputs, *torch.autograd.grad(outputs, leaves, weights)]


def agree(kernel: Run, reference: Run, inputs: Sequence[Tensor]) -> None:
    found = values_and_gradients(kernel, inputs, torch.float32)
    expected = values_and_gradients(reference, inputs, torch.float64)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert worst(a, b) < 1e-6, (i, worst(a, b))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("rows", "channels", "group"), [(1, 64, 64), (5, 48, 12), (150, 96, 48), (33, 80, 80)]
)
def test_gated_norm_agrees_with_float64(rows: int, channels: int, group: int) -> None:
    def through(norm: Callable[..., Tensor]) -> Run:
        def run(x: Tensor, wide: Tensor, weight: Tensor, skip: Tensor) -> tuple[Tensor]:
            value, gate = wide[..., 3 : 3 + channels], wide[..., -channels:]
            return (norm(x, weight, group, EPS, value, skip, gate, x.dtype),)

        return run

    inputs = [
        draw(2, rows, channels, seed=1),
        draw(2, rows, 2 * channels + 5, seed=2),
        draw(channels, seed=3),
        draw(channels, seed=4),
    ]
    agree(through(launch.gated_norm_triton), through(gated_norm), inputs)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("rows", "channels"), [(1, 16), (200, 40), (3, 1100)])
def test_residual_norm_agrees_with_float64(rows: int, channels: int) -> None:
    def through(norm: Callable[..., tuple[Tensor, Tensor]]) -> Run:
        def run(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
            return norm(x, weight, EPS, x.dtype)

        return run

    inputs = [draw(2, rows, channels, seed=1), draw(channels, seed=2)]
    agree(through(launch.residual_norm_triton), through(residual_norm), inputs)


@pytest.mark.usefixtures("poisoned")
def test_the_norm_of_a_sum_agrees_with_float64() -> None:
    def through(norm: Callable[..., tuple[Tensor, Tensor]]) -> Run:
        def run(x: Tensor, weight: Tensor, wide: Tensor) -> tuple[Tensor, ...]:
            return norm(x, weight, EPS, x.dtype, wide[..., 2:])

        return run

    inputs = [draw(2, 7, 40, seed=1), draw(40, seed=2), draw(2, 7, 42, seed=3)]
    agree(through(launch.residual_norm_triton), through(residual_norm), inputs)


@pytest.mark.parametrize("used", [0, 1])
def test_one_use_of_the_residual_norm_is_enough(used: int) -> None:
    x = draw(3, 32, seed=1).to(DEVICE).requires_grad_()
    weight = draw(32, seed=2).to(DEVICE)
    outputs = [launch.residual_norm_triton(x, weight, EPS, x.dtype)[used]]
    dy = draw(3, 32, seed=3).to(DEVICE)
    found = torch.autograd.grad(outputs, x, dy)[0]
    high = x.detach().cpu().double().requires_grad_()
    expected = residual_norm(high, weight.cpu().double(), EPS, torch.float64)[used]
    assert worst(found, torch.autograd.grad(expected, high, dy.cpu().double())[0]) < 1e-6


def test_results_take_the_dtype_that_is_asked_for() -> None:
    x, weight = draw(4, 64, seed=1).to(DEVICE), draw(64, seed=2).to(DEVICE)
    normed, same = launch.residual_norm_triton(x, weight, EPS, torch.bfloat16)
    assert normed.dtype == torch.bfloat16
    assert torch.equal(same, x)
    expected = residual_norm(x.cpu().double(), weight.cpu().double(), EPS, torch.float64)[0]
    assert worst(normed, expected) < 2**-7  # the interpreter cuts off instead of rounding


def test_the_gradient_of_the_gate_goes_where_it_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "fuses", lambda _: True)
    x, value, weight, skip = (draw(*shape, seed=i).to(DEVICE) for i, shape in enumerate(SHAPES))
    projected = draw(2, 5, 80, seed=9).to(DEVICE).requires_grad_()
    (_, gate), places = joint.split(projected, (32, 48))
    options = (x, weight, 16, EPS, value, skip)
    out = launch.gated_norm_triton(*options, gate, x.dtype, places[1])
    found = torch.autograd.grad(out.sum(), projected)[0]
    plain = projected[..., 32:].detach().requires_grad_()
    out = launch.gated_norm_triton(*options, plain, x.dtype)
    assert torch.equal(found[..., 32:], torch.autograd.grad(out.sum(), plain)[0])
    assert not found[..., :32].any()


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    norm = [draw(9, 64, seed=i).to(DEVICE) for i in range(3)]
    weights = [draw(64, seed=i).to(DEVICE) for i in (4, 5)]

    def run(rows: slice) -> Tensor:
        x, value, gate = (t[rows] for t in norm)
        return launch.gated_norm_triton(x, weights[0], 16, EPS, value, weights[1], gate, x.dtype)

    assert torch.equal(run(slice(0, 9))[4:5], run(slice(4, 5)))
