"""Which device to compute on."""

from __future__ import annotations

import torch

from kssm.errors import InvalidInputError


def resolve_device(name: str) -> torch.device:
    """The device of that name that this machine has; ``auto`` is the GPU if there is one.

    Raises ``InvalidInputError`` (`invalid_device`).
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        message = f"there is no device {name!r} here; try auto, cpu, cuda or cuda:N"
        raise InvalidInputError(message, code="invalid_device") from error
    return device
