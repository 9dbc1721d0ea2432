"""Fixtures for the operations: poisoned memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what ``torch.empty`` and its kin return with NaN: unwritten memory must show."""

    def poison(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: object, **options: object) -> Tensor:
            value = make(*args, **options)
            if value.is_floating_point() or value.is_complex():
                value.detach().fill_(float("nan"))
                return value
            return value.fill_(0x7FC07FC0) if value.dtype == torch.int32 else value

        return made

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poison(getattr(owner, name)))
