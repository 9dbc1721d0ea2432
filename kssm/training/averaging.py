"""A running average of the weights, kept beside the ones that are trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kssm.errors import InvalidInputError


@dataclass(frozen=True)
class AverageConfig:
    """Attributes:
    share: standard deviation of the average's window as a share of the steps so far, at most
        0.28 (a plain mean of all of them); 0 = keep no average.
    every: optimiser steps between two updates of the average.
    """

    share: float = 0.05
    every: int = 4

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 0.28 or self.every < 1:
            message = "average.share lies in 0 ... 0.28, average.every is at least 1"
            raise InvalidInputError(message, code="invalid_config")

    def power(self) -> float:
        """The exponent g of the weight profile t^g whose relative deviation is ``share``.

        That deviation is sqrt((g + 1) / ((g + 2)^2 (g + 3))), falling in g; found by bisection.
        """
        low, high = 0.0, 1e6
        for _ in range(80):
            g = (low + high) / 2
            wide = (g + 1.0) / ((g + 2.0) ** 2 * (g + 3.0)) > self.share**2
            low, high = (g, high) if wide else (low, g)
        return low


class WeightAverage:
    """Exponential average whose memory grows with the run: the weights of step t count as t^g.

    So one setting suits short and long runs, and what the first steps did is forgotten. Source:
    Karras et al., "Analyzing and improving the training dynamics of diffusion models", 2024.
    """

    def __init__(self, model: nn.Module, config: AverageConfig) -> None:
        self._config = config
        self._power = config.power()
        self._trained = list(model.parameters())
        self._average = [p.detach().clone() for p in self._trained]
        self._names = [name for name, _ in model.named_parameters()]
        self._updates = 0

    def update(self, step: int) -> None:
        """Take in the weights after optimiser step number ``step`` (from 1)."""
        if step % self._config.every:
            return
        self._updates += 1
        keep = (1.0 - 1.0 / self._updates) ** (self._power + 1.0)
        with torch.no_grad():
            for average, trained in zip(self._average, self._trained, strict=True):
                average.lerp_(trained, 1.0 - keep)

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The state dict of ``model`` with the averages in place of its parameters."""
        averages = dict(zip(self._names, self._average, strict=True))
        return {**model.state_dict(), **averages}

    def state_dict(self) -> dict[str, Any]:
        return {"average": self._average, "updates": self._updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for own, saved in zip(self._average, state["average"], strict=True):
            own.copy_(saved)
        self._updates = state["updates"]
