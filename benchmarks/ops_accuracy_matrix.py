"""Problems of the matrix-state scan for ``benchmarks.ops_accuracy``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kssm.ops.matrix_scan import MatrixParameters, matrix_scan

LAYOUTS = {"thousands of tokens": -9.0, "tens of tokens": -3.0, "rows of their own lengths": -3.0}
"""Means of the decay rates' biases. Of the last layout rows end early, steps have factors (some 0)
and the state is not zero; the others are one row, of decays that last this long."""

HEADS, VALUES, PAIRS = 4, 64, 32
NAMES = ("x", "b", "c", "alpha", "dt", "omega", *MatrixParameters._fields, "initial_state")


@dataclass(frozen=True)
class Problem:
    """Arguments of ``matrix_scan`` and the two weights of a loss."""

    leaves: list[Tensor]  # token inputs, parameters and, with ``rows``, the initial state
    weights: tuple[Tensor, Tensor]  # of y and of the last state
    rows: tuple[Tensor, Tensor] | None = None  # token_dt, lengths

    def double(self) -> Problem:
        """The same numbers in fp64."""
        y, final = self.weights
        return Problem([t.double() for t in self.leaves], (y.double(), final.double()), self.rows)


def draw(layout: str, tokens: int, dtype: torch.dtype, device: torch.device) -> Problem:
    """One row of ``tokens``, or three of which the longest has as many."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    options = layout == "rows of their own lengths"
    batch, width = 3 if options else 1, 2 * PAIRS
    rows, state = None, []
    if options:
        factor = 2 * torch.rand(batch, tokens, generator=generator)
        factor[:, ::7] = 0
        lengths = torch.tensor([tokens, tokens // 2, 1])
        rows = (factor.to(device), lengths.to(device))
        state = [normal(batch, HEADS, VALUES, PAIRS, 2)]
    shapes = [(HEADS, VALUES), (1, width), (1, width), (HEADS,), (HEADS,), (1, PAIRS)]
    streams = [normal(batch, tokens, *shape).to(device, dtype) for shape in shapes]
    parameters = [normal(HEADS) + LAYOUTS[layout], normal(HEADS), normal(1, PAIRS).exp()]
    y = normal(batch, tokens, HEADS, VALUES).to(device, torch.float32)
    final = normal(batch, HEADS, VALUES, PAIRS, 2).to(device, torch.float32)
    wide = [t.to(device, torch.float32) for t in (*parameters, *state)]
    return Problem([*streams, *wide], (y, final), rows)


def gradients(problem: Problem) -> dict[str, Tensor]:
    """y, the last state and all gradients of a weighted sum of both."""
    leaves = [t.detach().requires_grad_() for t in problem.leaves]
    x, b, c, alpha, dt, omega, *rest = leaves
    factor, lengths = problem.rows or (None, None)
    y, final = matrix_scan(
        *(x, b, c, alpha, dt, omega),
        MatrixParameters(*rest[:3]),
        token_dt=factor,
        initial_state=rest[3] if problem.rows else None,
        lengths=lengths,
    )
    weight, final_weight = problem.weights
    loss = (y.to(weight.dtype) * weight).sum() + (final * final_weight).sum()
    found = torch.autograd.grad(loss, leaves)
    return {"y": y.detach(), "final": final.detach()} | dict(zip(NAMES, found, strict=False))
