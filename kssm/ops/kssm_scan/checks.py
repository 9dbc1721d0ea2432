"""Input checks shared by the scan and the step: wrong input never reaches a kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kssm.errors import InvalidInputError
from kssm.ops.kssm_scan.gates import ScanParameters, compute_dtype

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_INTEGERS = (torch.int64, torch.int32)


def check_tokens(
    alpha: Tensor,
    omega: Tensor,
    dt: Tensor,
    x: Tensor,
    b_re: Tensor,
    b_im: Tensor,
    parameters: ScanParameters,
    *,
    dims: int,
) -> None:
    """Raise InvalidInputError unless the token inputs (``dims`` dimensions) fit each other."""
    if x.dim() != dims or 0 in x.shape:
        raise _shape(f"x needs {dims} dimensions, none of them 0", x.shape)
    for name, value in (("alpha", alpha), ("omega", omega), ("dt", dt)):
        check_shape(name, value, x.shape)
    if b_re.dim() != dims or b_re.shape[:-1] != x.shape[:-1]:
        raise _shape("b_re must be [..., G] with the leading dimensions of x", b_re.shape)
    if b_re.shape[-1] == 0 or x.shape[-1] % b_re.shape[-1]:
        raise _shape("the groups of b_re must divide the channels of x", b_re.shape)
    check_shape("b_im", b_im, b_re.shape)
    for name, value in parameters._asdict().items():
        check_shape(name, value, x.shape[-1:])
        check_dtype(name, value, (compute_dtype(x.dtype),))
    allowed = (torch.float64,) if x.dtype == torch.float64 else _FLOATS[:3]
    for name, value in zip(
        ("x", "alpha", "omega", "dt", "b_re", "b_im"),
        (x, alpha, omega, dt, b_re, b_im),
        strict=True,
    ):
        check_dtype(name, value, allowed)
    check_devices(x.device, (alpha, omega, dt, b_re, b_im, *parameters))


def check_optional(
    name: str,
    value: Tensor | None,
    shape: Sequence[int],
    device: torch.device,
    *,
    integer: bool = False,
) -> None:
    """Raise InvalidInputError unless an optional tensor is absent or fits."""
    if value is None:
        return
    check_shape(name, value, shape)
    check_dtype(name, value, _INTEGERS if integer else _FLOATS)
    check_devices(device, (value,))


def check_shape(name: str, value: Tensor, shape: Sequence[int]) -> None:
    """Raise InvalidInputError (``wrong_shape``) unless ``value`` has ``shape``."""
    if tuple(value.shape) != tuple(shape):
        raise _shape(f"{name} must have shape {list(shape)}", value.shape)


def check_dtype(name: str, value: Tensor, allowed: Sequence[torch.dtype]) -> None:
    """Raise InvalidInputError (``wrong_dtype``) unless ``value`` has one of the dtypes."""
    if value.dtype not in allowed:
        names = ", ".join(str(dtype) for dtype in allowed)
        raise InvalidInputError(f"{name} is {value.dtype}, allowed: {names}", code="wrong_dtype")


def check_devices(device: torch.device, values: Sequence[Tensor]) -> None:
    """Raise InvalidInputError (``wrong_device``) unless every tensor is on ``device``."""
    for value in values:
        if value.device != device:
            raise InvalidInputError(
                f"all tensors must be on {device}, one is on {value.device}", code="wrong_device"
            )


def _shape(message: str, shape: Sequence[int]) -> InvalidInputError:
    return InvalidInputError(f"{message}, got {list(shape)}", code="wrong_shape")
