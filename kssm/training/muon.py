"""Muon for many matrices of few shapes, batched by shape.

The update is ``torch.optim.Muon``'s with ``adjust_lr_fn="match_rms_adamw"``. That one goes matrix
by matrix, some 35 small kernels each; here all matrices of a shape take one batched product, a
sixth of the launches for eight equal blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor

COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
ITERATIONS: Final = 5
MOMENTUM: Final = 0.95
EPSILON: Final = 1e-7


class Muon:
    """Momentum, orthogonalised by Newton-Schulz, at the size of AdamW's updates.

    Sources: Jordan et al., "Muon: an optimizer for hidden layers", 2024; Liu et al., "Muon is
    scalable for LLM training", 2025 (size of the update).
    """

    def __init__(self, parameters: Iterable[Tensor], weight_decay: float) -> None:
        self._weight_decay = weight_decay
        groups: dict[torch.Size, list[Tensor]] = {}
        for parameter in parameters:
            groups.setdefault(parameter.shape, []).append(parameter)
        self._groups = list(groups.values())
        self._momenta = [
            torch.zeros(len(group), *group[0].shape, device=group[0].device)
            for group in self._groups
        ]

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update every parameter from its gradient (all of them must have one)."""
        for group, momentum in zip(self._groups, self._momenta, strict=True):
            gradient = torch.stack([p.grad for p in group if p.grad is not None])
            momentum.lerp_(gradient, 1.0 - MOMENTUM)
            update = orthogonalise(gradient.lerp(momentum, MOMENTUM)).to(momentum.dtype)
            size = 0.2 * max(group[0].shape) ** 0.5
            decay = 1.0 - learning_rate * self._weight_decay
            stacked = torch.stack(list(group)).mul_(decay).add_(update, alpha=-learning_rate * size)
            for parameter, new in zip(group, stacked, strict=True):
                parameter.copy_(new)

    def state_dict(self) -> dict[str, Any]:
        return {"momenta": self._momenta}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for own, saved in zip(self._momenta, state["momenta"], strict=True):
            own.copy_(saved)


def orthogonalise(matrices: Tensor) -> Tensor:
    """[N, rows, columns] -> bf16 matrices of the same singular vectors, singular values near 1."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=EPSILON)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
