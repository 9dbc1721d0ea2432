"""RWKV's token shift in a step: layer norm, the token before, and mixtures of the two.

n = layer_norm(clip(x))      delta = before - n      mixed_i = n + delta mix_i      before <- n
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor
from torch.nn import functional as F

from kssm.ops.eager import outside_graph
from kssm.ops.launch import kept_finite, runs_triton

__all__ = ["BOUND", "shift_step_"]

BOUND = 1e15
"""Entries are cut here before the norm: the norm of every finite token stays finite."""


def shift_step_(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    mix: Tensor,
    shifts: Tensor,
    slots: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise one token a row and mix it with the one before.

    Args:
        x: [N, D] residual stream.
        weight, bias: [D] of the layer norm.
        mix: [M, D] shares of the token before.
        shifts: arena [rows, D] of the normalised last tokens, changed in place.
        slots: [N] rows of the arena; only scratch rows may occur more than once.

    Returns:
        n [N, D], delta [N, D] and mixed [M, N, D]. A token that is not finite is not kept.
    """
    if runs_triton(shifts) and x.dtype == torch.float32 and weight.dtype == torch.float32:
        kernel = importlib.import_module("kssm.ops.token_shift.kernel")
        step = outside_graph(kernel.shift_step_triton_)
        return step(x, weight, bias, eps, mix, shifts, slots, BOUND)
    normed = F.layer_norm(x.clamp(-BOUND, BOUND), x.shape[-1:], weight, bias, eps)
    old = shifts[slots]
    shifts[slots] = kept_finite(normed, old)
    delta = old.to(normed.dtype) - normed
    mixed = normed + delta * mix.unsqueeze(1).to(normed.dtype)
    return normed, delta, mixed
