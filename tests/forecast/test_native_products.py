"""The compiled matrix products of every instruction set: exact, and alike in any batch."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from kssm.forecast.native import build, library
from kssm.quantization import HalfLinear, Int8Linear, WeightFormat
from tests.forecast.support import needs_native, same_bits

pytestmark = needs_native

SHAPES = [(1, 1), (7, 3), (33, 9), (64, 32), (150, 65), (40, 320), (17, 1041), (130, 257)]
ROWS = (1, 2, 3, 4, 5, 7, 8, 9, 17, 48)


class Products:
    """``product.c`` compiled for one instruction set."""

    def __init__(self, variant: str, folder: Path) -> None:
        command, target = build.compiler(), folder / f"{variant}.so"
        assert command is not None
        flags = [*build.FLAGS, *build.variants()[variant]]
        source = Path(__file__).with_name("product.c")
        subprocess.run([*command, *flags, str(source), "-o", str(target), "-lm"], check=True)
        self._call = ctypes.CDLL(str(target)).product

    def __call__(self, weight: Tensor, unit: Tensor | None, x: Tensor) -> Tensor:
        """[outputs, inputs], [outputs], [rows, inputs] -> [rows, outputs]."""
        outputs, inputs = weight.shape
        stride = -(-max(outputs, inputs) // 32) * 32
        wide, y = torch.full((2, len(x), stride), torch.nan)
        wide[:, :inputs] = x
        name = str(weight.dtype).removeprefix("torch.")
        assert self._call(
            *map(ctypes.c_int64, (len(x), get_args(WeightFormat).index(name), outputs, inputs)),
            ctypes.c_void_p(weight.contiguous().data_ptr()),
            ctypes.c_void_p(None if unit is None else unit.data_ptr()),
            *map(ctypes.c_void_p, (wide.data_ptr(), y.data_ptr())),
            ctypes.c_int64(stride),
        )
        return y[:, :outputs]


@pytest.fixture(scope="module", params=sorted(build.variants()))
def products(request: pytest.FixtureRequest, tmp_path_factory) -> Products:
    if request.param not in library.usable_variants():
        pytest.skip("not for this processor")
    return Products(request.param, tmp_path_factory.mktemp("products"))


def inputs_of(rows: int, inputs: int) -> Tensor:
    """Rows of many magnitudes, one of zeros."""
    generator = torch.Generator().manual_seed(inputs)
    x = torch.randn(rows, inputs, generator=generator)
    x *= 10.0 ** torch.randint(-20, 20, (rows, 1), generator=generator)
    x[rows // 2] = 0.0 if rows > 2 else x[rows // 2]
    return x


def weights_of(outputs: int, inputs: int) -> Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(outputs))


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_bytes_give_the_bits_of_the_integer_reference(
    products: Products, outputs: int, inputs: int
) -> None:
    layer = Int8Linear(weights_of(outputs, inputs))
    for rows in ROWS:
        x = inputs_of(rows, inputs)
        assert same_bits(products(layer.weight, layer.unit, x).contiguous(), layer(x))


def test_the_largest_bytes_do_not_saturate(products: Products) -> None:
    for sign in (1.0, -1.0):
        layer = Int8Linear(torch.full((40, 512), sign))
        for x in (torch.ones(9, 512), -torch.ones(9, 512)):
            assert same_bits(products(layer.weight, layer.unit, x).contiguous(), layer(x))
            assert torch.equal(layer(x), sign * 512 * x[:, :40])


def test_sick_rows_stay_sick_and_harm_no_other(products: Products) -> None:
    layer, x = Int8Linear(weights_of(50, 70)), inputs_of(9, 70)
    expected = products(layer.weight, layer.unit, x)
    sick = x.clone()
    sick[2, 3], sick[5, 69], sick[6] = torch.nan, torch.inf, -torch.inf
    y = products(layer.weight, layer.unit, sick)
    assert not y[[2, 5, 6]].isfinite().any()
    healthy = [0, 1, 3, 4, 7, 8]
    assert same_bits(y[healthy], expected[healthy])


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8])
def test_a_row_is_computed_alike_in_any_batch(
    products: Products, outputs: int, inputs: int, dtype: torch.dtype
) -> None:
    layer = Int8Linear(weights_of(outputs, inputs))
    weight = layer.weight if dtype == torch.int8 else weights_of(outputs, inputs).to(dtype)
    x = inputs_of(49, inputs)
    alone = torch.cat([products(weight, layer.unit, row[None]) for row in x])
    for rows in ROWS:
        assert same_bits(products(weight, layer.unit, x[:rows]), alone[:rows])


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_give_the_bits_of_the_same_numbers_in_fp32(
    products: Products, outputs: int, inputs: int, dtype: torch.dtype
) -> None:
    weight = weights_of(outputs, inputs).to(dtype)
    weight[0, 0] = 2.0**-24 if dtype == torch.float16 else 1e-39  # subnormal
    for rows in ROWS:
        x = inputs_of(rows, inputs)
        y = products(weight, None, x)
        assert same_bits(y, products(weight.float(), None, x))
        layer = HalfLinear(weight, dtype)
        scale = x.abs().sum(1, keepdim=True) * float(weight.abs().max()) + 1e-30
        assert ((y - layer(x)).abs() <= 1e-6 * scale).all()


def test_all_fp16_numbers_are_widened_exactly(products: Products) -> None:
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    numbers = patterns.view(torch.float16)
    numbers = numbers[numbers.isfinite()].reshape(-1, 1)
    for rows in (1, 8, 48):
        y = products(numbers, None, torch.ones(rows, 1))
        assert torch.equal(y, numbers.float().t().expand(rows, -1))


def test_accuracy_against_float64(products: Products) -> None:
    weight, x = (
        weights_of(64, 320),
        torch.randn(20, 320, generator=torch.Generator().manual_seed(1)),
    )
    exact = nn.functional.linear(x.double(), weight.double())
    assert (products(weight, None, x) - exact).abs().max() < 2e-5
