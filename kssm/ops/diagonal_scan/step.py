"""One token of the diagonal recurrence for each of many rows, states changed in place."""

from __future__ import annotations

import importlib

import torch
from torch import Tensor
from torch.nn import functional as F

from kssm.ops.diagonal_scan.modes import Discretization, Modes, transition
from kssm.ops.eager import outside_graph
from kssm.ops.launch import kept_finite, runs_triton


def diagonal_step_(
    x: Tensor,
    modes: Modes,
    rule: Discretization,
    skip: Tensor,
    states: Tensor,
    slots: Tensor,
    dt: Tensor | None,
) -> Tensor:
    """Advance N rows by one token.

    Args:
        x: [N, D] in the arena's dtype.
        modes, rule: the recurrence of every channel.
        skip: [D].
        states: arena [rows, D, modes, 2], changed in place.
        slots: [N] rows of the arena; only scratch rows may occur more than once.
        dt: [N] factors of the steps, None = 1.

    Returns:
        gelu(2 Re(c . h) + skip x) [N, D]. New state that is not finite is not kept.

    The state is fp32, its product with the decay is taken in fp64: rounded decays would add up.
    """
    if runs_triton(states):
        kernel = importlib.import_module("kssm.ops.diagonal_scan.kernel_step")
        step_kernel = outside_graph(kernel.diagonal_step_triton_)
        return step_kernel(x, modes, rule, skip, states, slots, dt)
    decay_re, decay_im, gain_re, gain_im = transition(modes, rule, dt)
    old = states[slots]
    re, im = old.double().unbind(-1)
    token = x.double().unsqueeze(-1)
    new_re = decay_re * re - decay_im * im + gain_re * token
    new_im = decay_im * re + decay_re * im + gain_im * token
    new = torch.stack([new_re, new_im], dim=-1).to(states.dtype)
    states[slots] = kept_finite(new, old)
    y = 2.0 * (new[..., 0] * modes.c_re - new[..., 1] * modes.c_im).sum(-1)
    return F.gelu(y + skip * x)
