"""Linear layers without bias whose weights are kept in fewer bits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kssm.errors import InvalidInputError

LARGEST_BYTE: Final = 127
"""Of weights, both ways: a symmetric range needs no offset."""
LARGEST: Final = 127 * 128
"""Of inputs. They are kept as two bytes, 128 high + low."""
_SMALLEST_PEAK: Final = 1e-30
"""Vectors whose largest number is below count as zero."""
_EXACT_INPUTS: Final = 2**24 // LARGEST_BYTE**2
"""So many products of two bytes add up without rounding in fp32."""


class QuantizedLinear(nn.Module, ABC):
    """y = W x, computed from the first ``outputs`` rows of W (None = all)."""

    weight: Tensor

    @abstractmethod
    def forward(self, x: Tensor, outputs: int | None = None) -> Tensor:
        """[..., inputs] -> [..., outputs] in the dtype of x, which is fp32 or wider."""


class HalfLinear(QuantizedLinear):
    """Weights [outputs, inputs] in fp16 or bf16; they are widened to the dtype of x."""

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", _shortened(weight.detach(), dtype))

    def forward(self, x: Tensor, outputs: int | None = None) -> Tensor:
        return F.linear(x, self.weight[:outputs].to(x.dtype))


class Int8Linear(QuantizedLinear):
    """Weights unit[j] w[j, k] with bytes w; x is rounded to unit(x) q, vector by vector.

        unit(x) = max |x| / 16256      q = round(x / unit(x)), ties to even
        y[j] = (sum_k w[j, k] q[k]) unit(x) unit[j]

    With q = 128 high + low the sum is two sums of products of bytes, which are exact, so nothing
    depends on the order of summation. Inputs of one byte would lose 0.3% of forecast skill; those
    of two lose nothing, and where memory is the limit they cost nothing.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        wide = weight.detach().float()
        unit = wide.abs().amax(1) / LARGEST_BYTE
        safe = torch.where(unit > 0, unit, 1.0)
        self.register_buffer("weight", (wide / safe[:, None]).round().to(torch.int8))
        self.unit: Tensor
        self.register_buffer("unit", unit)

    def forward(self, x: Tensor, outputs: int | None = None) -> Tensor:
        rounded, unit = round_vectors(x.float())
        high = torch.floor((rounded + 64) / 128)
        exact = torch.float32 if x.shape[-1] <= _EXACT_INPUTS else torch.float64
        weight = self.weight[:outputs].to(exact)
        highs = F.linear(high.to(exact), weight).float().double()
        lows = F.linear((rounded - 128 * high).to(exact), weight).float().double()
        total = (128 * highs + lows).float()
        return (total * (unit * self.unit[:outputs])).to(x.dtype)


def round_vectors(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., inputs] fp32 as whole numbers from -LARGEST to LARGEST (in fp64) and units [..., 1].

    A vector that is not finite gets a unit that is not.
    """
    peak = x.abs().amax(-1, keepdim=True)
    # In fp64 the product of two fp32 numbers is exact, so that it is rounded once.
    inverse = torch.full_like(peak, LARGEST) / peak
    inverse = torch.where(peak > _SMALLEST_PEAK, inverse, 0.0).double()
    return (x.double() * inverse).round().nan_to_num(0.0), peak / LARGEST


def _shortened(weight: Tensor, dtype: torch.dtype) -> Tensor:
    short = weight.to(dtype)
    if not bool(torch.isfinite(short).all()):
        raise InvalidInputError(f"weights do not fit into {dtype}", code="invalid_weights")
    return short
