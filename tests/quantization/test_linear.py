"""Quantized linear layers: their formulas, their exactness, their errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kssm.errors import InvalidInputError
from kssm.quantization import HalfLinear, Int8Linear
from kssm.quantization.linear import LARGEST, round_vectors


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_are_widened_not_the_inputs_shortened(dtype: torch.dtype) -> None:
    weight, x = normal(7, 5), normal(3, 5, seed=1)
    layer = HalfLinear(weight, dtype)
    assert layer.weight.dtype == dtype
    assert torch.equal(layer(x), x @ weight.to(dtype).float().t())
    torch.testing.assert_close(layer(x, 4), layer(x)[:, :4])
    assert layer(x.double()).dtype == torch.float64


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidInputError) as raised:
        HalfLinear(torch.full((2, 2), 1e5), torch.float16)
    assert raised.value.code == "invalid_weights"


def integer_product(layer: Int8Linear, x: Tensor) -> Tensor:
    """The layer's formula with Python's whole numbers."""
    rounded, unit = round_vectors(x)
    rows = []
    for vector, size in zip(rounded.long().tolist(), unit.flatten(), strict=True):
        sums = [sum(w * q for w, q in zip(row, vector, strict=True)) for row in layer.weight.long()]
        rows.append(torch.tensor([int(s) for s in sums]).double().float() * (size * layer.unit))
    return torch.stack(rows)


@pytest.mark.parametrize("inputs", [1, 3, 64, 1040])
def test_int8_is_the_integer_product(inputs: int) -> None:
    layer, x = Int8Linear(normal(5, inputs)), normal(4, inputs, seed=1)
    assert torch.equal(layer(x), integer_product(layer, x))
    assert torch.equal(layer(x, 2), layer(x)[:, :2])


def test_int8_weights_and_inputs_are_rounded_to_the_nearest() -> None:
    weight, x = normal(9, 40), normal(6, 40, seed=1)
    layer = Int8Linear(weight)
    assert layer.weight.dtype == torch.int8
    assert int(layer.weight.abs().amax(1).min()) == 127
    error = weight - layer.weight.float() * layer.unit[:, None]
    assert (error.abs() <= 0.5001 * layer.unit[:, None]).all()
    rounded, unit = round_vectors(x)
    assert torch.equal(rounded.abs().amax(1), torch.full((6,), float(LARGEST)).double())
    assert ((x - rounded * unit).abs() <= 0.5001 * unit).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 600), st.floats(1e-20, 1e20), st.integers(0, 99))
def test_int8_error_is_bounded_by_the_weights_units(inputs: int, scale: float, seed: int) -> None:
    weight, x = normal(3, inputs, seed=seed), scale * normal(2, inputs, seed=seed + 1)
    layer = Int8Linear(weight)
    exact = x.double() @ weight.double().t()
    bound = x.abs().sum(1, keepdim=True) * layer.unit * 0.501
    bound = bound + weight.abs().sum(1) * (x.abs().amax(1, keepdim=True) / LARGEST)
    assert ((layer(x) - exact).abs() <= bound).all()


def test_zeros_and_what_is_not_finite() -> None:
    layer = Int8Linear(torch.tensor([[1.0, -2.0, 3.0], [0.0, 0.0, 0.0]]))
    assert torch.equal(layer(torch.zeros(1, 3)), torch.zeros(1, 2))
    assert torch.equal(layer(torch.full((1, 3), 1e-38)), torch.zeros(1, 2))
    sick = torch.tensor([[1.0, torch.nan, 1.0], [torch.inf, 0.0, 0.0], [1.0, 1.0, 1.0]])
    y = layer(sick)
    assert not y[:2].isfinite().any()
    assert y[2].isfinite().all()
    assert layer(torch.ones(3)).shape == (2,)
