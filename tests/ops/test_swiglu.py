"""The gated product: kernels against float64."""

from __future__ import annotations

import pytest
import torch

from kssm.ops.swiglu import swiglu
from tests.ops.kernels import draw, worst
from tests.ops.problems import DEVICE

kernel = pytest.importorskip("kssm.ops.swiglu.kernel")


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("rows", "hidden"), [(1, 3), (19, 64), (9, 300)])
def test_kernels_agree_with_float64(rows: int, hidden: int) -> None:
    x, dy = draw(2, rows, 2 * hidden + 6, seed=1), draw(2, rows, hidden, seed=2)
    low = x.to(DEVICE)[..., 6:]
    high = x.double()[..., 6:].requires_grad_()
    expected = swiglu(high)
    assert worst(kernel.forward(low), expected) < 1e-6
    gradient = torch.autograd.grad(expected, high, dy.double())[0]
    assert worst(kernel.backward(low, dy.to(DEVICE)), gradient) < 1e-6


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # the interpreter's numpy
def test_gates_far_from_zero_stay_finite() -> None:
    gate = torch.tensor([-1e30, -1e4, -120.0, -90.0, -60.0, 0.0, 60.0, 90.0, 120.0, 1e4, 1e30])
    x = torch.cat([gate, torch.ones_like(gate)]).unsqueeze(0)
    high = x.double().requires_grad_()
    expected = swiglu(high)
    y = kernel.forward(x.to(DEVICE)).cpu().double()
    torch.testing.assert_close(y, expected.detach(), rtol=1e-6, atol=1e-20)
    dy = torch.ones_like(gate).unsqueeze(0)
    gradient = torch.autograd.grad(expected, high, dy.double())[0]
    found = kernel.backward(x.to(DEVICE), dy.to(DEVICE)).cpu().double()
    torch.testing.assert_close(found, gradient, rtol=1e-6, atol=1e-20)
