"""Optimisers and the learning-rate schedule of pretraining."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kssm.training.muon import Muon

MATRICES = ("in_proj", "out_proj", "select", "mlp.up", "mlp.down")


@dataclass(frozen=True)
class OptimizerConfig:
    """Hyper-parameters; both optimisers follow the same schedule.

    Attributes:
        learning_rate: peak, shared by AdamW and Muon (whose updates are scaled to AdamW's size).
        warmup_steps: steps of linear warm-up.
        cooldown: share of the run over which the rate falls linearly to zero.
        weight_decay: decoupled, on matrices only.
        clip: largest gradient norm.
    """

    learning_rate: float = 2e-3
    warmup_steps: int = 100
    cooldown: float = 0.5
    weight_decay: float = 0.05
    clip: float = 1.0


class Optimizers:
    """Muon on the projections inside blocks, AdamW on everything else.

    Gradients of several ranks have to be averaged before ``step``, as DDP does in the backward
    pass: every rank then takes the same step.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self.config = config
        self._parameters = list(model.parameters())
        projections, matrices, vectors = _split(model)
        fused = self._parameters[0].is_cuda
        adam = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": config.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(0.9, 0.97),
            fused=fused,
        )
        self._adam = adam
        self._muon = Muon(projections, config.weight_decay)

    def step(self, learning_rate: float) -> Tensor:
        """Clip, update, clear; returns the gradient norm. A non-finite gradient counts as zero."""
        norm = nn.utils.clip_grad_norm_(self._parameters, self.config.clip, foreach=True)
        healthy = torch.isfinite(norm)
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad = torch.where(healthy, parameter.grad, 0.0)
        for group in self._adam.param_groups:
            group["lr"] = learning_rate
        self._adam.step()
        self._muon.step(learning_rate)
        for parameter in self._parameters:
            parameter.grad = None
        return norm

    def state_dict(self) -> dict[str, Any]:
        return {"adam": self._adam.state_dict(), "muon": self._muon.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._adam.load_state_dict(state["adam"])
        self._muon.load_state_dict(state["muon"])


def scheduled_rate(config: OptimizerConfig, step: int, progress: float) -> float:
    """Learning rate at ``step`` when ``progress`` (0 to 1) of the run is done."""
    warm = min(1.0, (step + 1) / config.warmup_steps)
    cool = min(1.0, max(0.0, (1.0 - progress) / config.cooldown))
    return config.learning_rate * warm * cool


def _split(model: nn.Module) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    projections: list[Tensor] = []
    matrices: list[Tensor] = []
    vectors: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or "conv" in name:
            vectors.append(parameter)
        elif "blocks." in name and name.removesuffix(".weight").endswith(MATRICES):
            projections.append(parameter)
        else:
            matrices.append(parameter)
    return projections, matrices, vectors
