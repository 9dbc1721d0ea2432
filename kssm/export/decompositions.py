"""Functions that onnxruntime has in fp32 only, from ones that it has in fp64 too."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_SPACING = 0.5
_TERMS = 14
"""Points of the trapezoidal rule: what is left out is below 1e-17 of the result."""


def asinh(x: Tensor) -> Tensor:
    """Inverse hyperbolic sine; its series where the logarithm would lose digits."""
    size = x.abs()
    far = torch.sign(x) * torch.log(size + torch.sqrt(size * size + 1.0))
    square = x * x
    near = x * (1.0 - square / 6.0 * (1.0 - 0.45 * square))
    return torch.where(size < 1e-3, near, far)


def sinh(x: Tensor) -> Tensor:
    """Hyperbolic sine; its series where the difference would lose digits."""
    far = 0.5 * (torch.exp(x) - torch.exp(-x))
    square = x * x
    near = x * (1.0 + square / 6.0 * (1.0 + 0.05 * square))
    return torch.where(x.abs() < 1e-2, near, far)


def erfc(x: Tensor) -> Tensor:
    """Complementary error function, relatively accurate down to 1e-40.

    A trapezoidal sum with its correction (Matta and Reichel, "Uniform computation of the error
    function and other related functions", 1971).
    """
    z = x.abs()
    square = z * z
    total = torch.zeros_like(z)
    for n in range(_TERMS):
        place = ((n + 0.5) * _SPACING) ** 2
        total = total + math.exp(-place) / (square + place)
    spread = 2.0 * _SPACING / math.pi * z * torch.exp(-square) * total
    beyond = spread + 2.0 / (torch.exp(2.0 * math.pi / _SPACING * z) + 1.0)
    return torch.where(x < 0, 2.0 - beyond, beyond)


def decompositions() -> dict[Any, Callable[..., Tensor]]:
    """What to replace before a program becomes ONNX."""
    aten = torch.ops.aten
    return {
        aten.asinh.default: asinh,
        aten.sinh.default: sinh,
        aten.erfc.default: erfc,
        aten.special_erfc.default: erfc,
    }
