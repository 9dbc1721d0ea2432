"""What the random problems of all scans have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor

Parameters = TypeVar("Parameters", bound=tuple[Tensor, ...])


@dataclass(frozen=True)
class ScanProblem(Generic[Parameters]):
    """Arguments of a scan and the weights of a scalar loss."""

    inputs: Sequence[Tensor]
    parameters: Parameters
    token_dt: Any  # Tensor or None, as the next two
    initial_state: Any
    lengths: Any
    y_weight: Tensor
    final_weight: Tensor

    def to(self, dtype: torch.dtype, device: str = "cpu") -> Self:
        """The same numbers elsewhere; parameters and state in the compute dtype."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32

        def move(value: Any, kind: torch.dtype) -> Any:
            return None if value is None else value.detach().to(device, kind)

        return replace(
            self,
            inputs=tuple(move(t, dtype) for t in self.inputs),
            parameters=type(self.parameters)(*(move(p, wide) for p in self.parameters)),
            token_dt=move(self.token_dt, torch.float32),
            initial_state=move(self.initial_state, wide),
            lengths=move(self.lengths, torch.int64),
            y_weight=move(self.y_weight, wide),
            final_weight=move(self.final_weight, wide),
        )
