"""Random inputs for the scan, and one way to run every backend on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kssm.ops.kssm_scan import ScanParameters, kssm_scan
from tests.ops.scan_problem import ScanProblem

NAMES = ("alpha", "omega", "dt", "x", "b_re", "b_im")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Problem(ScanProblem[ScanParameters]):
    """Arguments of ``kssm_scan`` and the weights of a scalar loss."""

    def run(self, backend: str) -> tuple[Tensor, Tensor]:
        """y and the last state, without gradients."""
        with torch.no_grad():
            return self.scan(backend)

    def scan(self, backend: str) -> tuple[Tensor, Tensor]:
        return kssm_scan(
            **named(self.inputs),
            parameters=self.parameters,
            token_dt=self.token_dt,
            initial_state=self.initial_state,
            lengths=self.lengths,
            backend=backend,  # pyright: ignore[reportArgumentType]
        )

    def gradients(self, backend: str) -> dict[str, Tensor]:
        """y, the last state and every gradient of the weighted sum of both, by name."""
        names = [*NAMES, *ScanParameters._fields]
        leaves = [t.detach().requires_grad_() for t in (*self.inputs, *self.parameters)]
        state = self.initial_state
        if state is not None:
            state = state.detach().requires_grad_()
            names.append("initial_state")
        problem = replace(
            self,
            inputs=tuple(leaves[:6]),
            parameters=ScanParameters(*leaves[6:]),
            initial_state=state,
        )
        y, final = problem.scan(backend)
        loss = (y.to(self.y_weight.dtype) * self.y_weight).sum() + (final * self.final_weight).sum()
        wanted = leaves if state is None else [*leaves, state]
        found = torch.autograd.grad(loss, wanted)
        return {"y": y, "final": final, **dict(zip(names, found, strict=True))}


def make_problem(
    batch: int,
    tokens: int,
    channels: int,
    groups: int,
    *,
    seed: int = 0,
    token_dt: bool = False,
    initial: bool = False,
    lengths: bool = False,
) -> Problem:
    """fp64 on the CPU, exactly representable in bf16 so that every dtype gets the same numbers.

    Decays and rotations range from almost none to strong; a third of the tokens of token_dt is 0
    and lengths start at 0 and end at all tokens.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).bfloat16().double()

    inputs = [draw(batch, tokens, channels) for _ in range(4)]
    inputs += [draw(batch, tokens, groups) for _ in range(2)]
    spread = torch.linspace(0.0, 1.0, channels, dtype=torch.float64).bfloat16().double()
    parameters = ScanParameters(
        alpha_bias=-6.0 * spread,
        omega_bias=draw(channels),
        omega_scale=4.0 * spread.flip(0) + 0.25,
        dt_bias=1.0 - 4.0 * spread,
        c_re=draw(channels),
        c_im=draw(channels),
    )
    factor = torch.rand(batch, tokens, generator=generator) * 2
    factor = factor.masked_fill(torch.rand(batch, tokens, generator=generator) < 0.3, 0.0)
    ends = torch.linspace(0, tokens, batch).round().long() if batch > 1 else torch.tensor([tokens])
    return Problem(
        tuple(inputs),
        parameters,
        factor if token_dt else None,
        draw(batch, channels, 2) if initial else None,
        ends if lengths else None,
        draw(batch, tokens, channels),
        draw(batch, channels, 2),
    )


def named(inputs: Sequence[Tensor]) -> dict[str, Any]:
    """The six token inputs as keyword arguments."""
    return dict(zip(NAMES, inputs, strict=True))


def worst(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected number."""
    expected = expected.detach().double().cpu()
    scale = expected.abs().max().clamp(min=1e-30)
    return ((found.detach().double().cpu() - expected).abs().max() / scale).item()


def check_missing_number_stays(problem: Problem) -> None:
    """A NaN at token 2 of row 1, channel 3, changes nothing but what comes after it there."""
    y, final = problem.run("triton")
    for place in range(4):
        inputs = [t.clone() for t in problem.inputs]
        inputs[place][1, 2, 3] = float("nan")
        y_hit, final_hit = replace(problem, inputs=tuple(inputs)).run("triton")
        assert y_hit[1, 2:, 3].isnan().all()
        assert final_hit[1, 3].isnan().all()
        y_hit[1, 2:, 3] = y[1, 2:, 3]
        final_hit[1, 3] = final[1, 3]
        assert torch.equal(y_hit, y)
        assert torch.equal(final_hit, final)
