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
