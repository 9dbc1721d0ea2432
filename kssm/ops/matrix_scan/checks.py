"""Input checks shared by the scan and the step: wrong input never reaches a kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kssm.errors import InvalidInputError
from kssm.ops.kssm_scan.checks import check_devices, check_dtype, check_optional, check_shape
from kssm.ops.matrix_scan.gates import MatrixParameters, compute_dtype

__all__ = ["check_arena", "check_optional", "check_tokens"]

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_tokens(
    x: Tensor,
    b: Tensor,
    c: Tensor,
    alpha: Tensor,
    dt: Tensor,
    omega: Tensor,
    parameters: MatrixParameters,
    *,
    leading: int,
) -> None:
    """Raise InvalidInputError unless the inputs (``leading`` dimensions before H) fit."""
    if x.dim() != leading + 2 or omega.dim() != leading + 2 or 0 in (*x.shape, *omega.shape):
        raise _shape("x and omega need the documented dimensions, none of them 0", x.shape)
    first, heads = x.shape[:leading], x.shape[leading]
    groups, pairs = omega.shape[leading:]
    if heads % groups:
        raise _shape("the groups of omega must divide the heads of x", omega.shape)
    check_shape("omega", omega, (*first, groups, pairs))
    for name, value in (("b", b), ("c", c)):
        check_shape(name, value, (*first, groups, 2 * pairs))
    for name, value in (("alpha", alpha), ("dt", dt)):
        check_shape(name, value, (*first, heads))
    shapes = ((heads,), (heads,), (groups, pairs))
    for (name, value), shape in zip(parameters._asdict().items(), shapes, strict=True):
        check_shape(name, value, shape)
        check_dtype(name, value, (compute_dtype(x.dtype),))
    allowed = (torch.float64,) if x.dtype == torch.float64 else _FLOATS[:3]
    named = {"x": x, "b": b, "c": c, "alpha": alpha, "dt": dt, "omega": omega}
    for name, value in named.items():
        check_dtype(name, value, allowed)
    check_devices(x.device, (*named.values(), *parameters))


def check_arena(
    state: Tensor, slots: Tensor, row: Sequence[int], dtype: torch.dtype, x: Tensor
) -> None:
    """Raise InvalidInputError unless arena and slots suit the tokens ``x`` [R, ...]."""
    check_shape("state", state, (*state.shape[:1], *row))
    check_dtype("state", state, (dtype,))
    check_shape("slots", slots, x.shape[:1])
    check_dtype("slots", slots, (torch.int64,))
    check_devices(x.device, (state, slots))
    if not state.is_contiguous():
        raise InvalidInputError("the state arena must be contiguous", code="wrong_shape")


def _shape(message: str, shape: Sequence[int]) -> InvalidInputError:
    return InvalidInputError(f"{message}, got {list(shape)}", code="wrong_shape")
