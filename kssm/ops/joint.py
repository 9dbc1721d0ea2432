"""A projection cut into pieces whose gradients are computed side by side in one tensor.

Autograd joins the gradients of the pieces of a tensor by copying all of them. Here whoever computes
one may write it where it belongs, and only what came from elsewhere is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kssm.ops.launch import fuses


@dataclass(frozen=True)
class Place:
    """Where the gradient of one piece belongs."""

    gradient: _Gradient
    index: int

    def memory(self) -> Tensor:
        """Memory [..., size] for it, a slice of the whole."""
        return self.gradient.part(self.index)


def split(x: Tensor, sizes: Sequence[int]) -> tuple[tuple[Tensor, ...], list[Place | None]]:
    """The pieces of x [..., C], and for each the place of its gradient (None: nothing to gain)."""
    if not (fuses(x) and torch.is_grad_enabled() and x.requires_grad):
        return x.split(list(sizes), dim=-1), [None] * len(sizes)
    gradient = _Gradient(x, sizes)
    return _Split.apply(x, gradient), [Place(gradient, i) for i in range(len(sizes))]


class _Gradient:
    """The gradient of a tensor that was cut; there is memory for it only during backward."""

    def __init__(self, x: Tensor, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)
        self._shape, self._dtype, self._device = x.shape, x.dtype, x.device
        self._whole: Tensor | None = None

    def part(self, index: int) -> Tensor:
        """Memory for the gradient of one piece."""
        if self._whole is None:
            self._whole = torch.empty(self._shape, dtype=self._dtype, device=self._device)
        return self._whole.split(self.sizes, dim=-1)[index]

    def joined(self, incoming: Sequence[Tensor | None]) -> Tensor:
        """The whole, with the parts that are not yet in their places; forgets it."""
        for index, given in enumerate(incoming):
            part = self.part(index)
            if given is None:
                part.zero_()
            elif given.data_ptr() != part.data_ptr() or given.stride() != part.stride():
                part.copy_(given)
        whole, self._whole = self._whole, None
        assert whole is not None
        return whole


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gradient: _Gradient) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.gradient = gradient
        return x.split(gradient.sizes, dim=-1)

    @staticmethod
    @once_differentiable  # pyright does not see through it
    def backward(ctx: Any, *incoming: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.gradient.joined(incoming), None
