"""Random inputs for the matrix-state scan, and one way to run every backend on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kssm.ops.matrix_scan import MatrixParameters, matrix_scan
from tests.ops.scan_problem import ScanProblem

NAMES = ("x", "b", "c", "alpha", "dt", "omega", "alpha_bias", "dt_bias", "rate", "initial_state")
Run = Callable[..., tuple[Tensor, Tensor]]


class MatrixProblem(ScanProblem[MatrixParameters]):
    """Arguments of ``matrix_scan`` and the weights of a scalar loss."""

    def run(self, scan: Run | str) -> tuple[Tensor, Tensor]:
        """y and the last state, from a backend's name or a function like ``matrix_scan``."""
        options = {
            "token_dt": self.token_dt,
            "initial_state": self.initial_state,
            "lengths": self.lengths,
        }
        if isinstance(scan, str):
            return matrix_scan(*self.inputs, parameters=self.parameters, **options, backend=scan)
        return scan(*self.inputs, parameters=self.parameters, **options)

    def gradients(self, scan: Run | str) -> dict[str, Tensor]:
        """Gradients of the loss by name."""
        leaves = [*self.inputs, *self.parameters]
        if self.initial_state is not None:
            leaves.append(self.initial_state)
        for leaf in leaves:
            leaf.requires_grad_()
        y, final = self.run(scan)
        loss = (y.to(self.y_weight.dtype) * self.y_weight).sum() + (final * self.final_weight).sum()
        found = torch.autograd.grad(loss, leaves)
        for leaf in leaves:
            leaf.requires_grad_(False)
        return dict(zip(NAMES, found, strict=False))


def make_problem(
    batch: int = 2,
    tokens: int = 70,
    heads: int = 4,
    values: int = 16,
    groups: int = 2,
    pairs: int = 8,
    *,
    options: bool = True,
    slow: float = -3.0,
    seed: int = 0,
) -> MatrixProblem:
    """A problem in fp64; ``options`` adds token_dt with zeros, lengths and an initial state."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    shapes = (
        (heads, values),
        (groups, 2 * pairs),
        (groups, 2 * pairs),
        (heads,),
        (heads,),
        (groups, pairs),
    )
    token_dt = lengths = initial = None
    if options:
        token_dt = 2 * torch.rand(batch, tokens, generator=generator, dtype=torch.float64)
        token_dt[:, ::7] = 0
        lengths = torch.tensor([tokens, tokens // 2, 0][:batch])
        initial = draw(batch, heads, values, pairs, 2)
    return MatrixProblem(
        tuple(draw(batch, tokens, *shape) for shape in shapes),
        MatrixParameters(draw(heads) + slow, draw(heads), draw(groups, pairs).exp()),
        token_dt,
        initial,
        lengths,
        draw(batch, tokens, heads, values),
        draw(batch, heads, values, pairs, 2),
    )


def relative_error(actual: Tensor, expected: Tensor, size: Tensor | None = None) -> float:
    """Largest difference over the largest expected number, or over ``size`` if that is larger."""
    scale = max(float(expected.abs().max()), 0.0 if size is None else float(size.max())) + 1e-30
    return float((actual.double() - expected.double()).abs().max()) / scale


def sum_sizes(problem: MatrixProblem, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the sums over tokens that are parameters' gradients would be if none cancelled by
    chance: the roots of their terms' sums of squares."""
    omega, rate = problem.inputs[5], problem.parameters.rate
    terms = {
        "alpha_bias": gradients["alpha"],
        "dt_bias": gradients["dt"],
        "rate": gradients["omega"] * (1 + omega) / rate,
    }
    return {name: term.square().sum((0, 1)).sqrt() for name, term in terms.items()}
