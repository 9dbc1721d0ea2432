"""Peers of the matrix-state scan: chunked scans of other projects, where they are installed.

Each takes the sizes of a ``Case`` and draws inputs of its own kind: what is the same is the
width, the heads, the real state of a head and the tokens.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Run = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """Sizes of one line of the table: ``width`` is a head's real state a value (2 N)."""

    batch: int
    tokens: int
    heads: int
    values: int
    width: int
    device: torch.device

    def draw(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Random numbers [B, T, ...]."""
        return torch.randn(self.batch, self.tokens, *shape, device=self.device, dtype=dtype)


@dataclass(frozen=True)
class Contender:
    """A scan with inputs of its own."""

    scan: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]

    def forward(self) -> Run:
        """The scan as in inference: nothing is kept."""

        def run() -> None:
            with torch.no_grad():
                self.scan(*self.inputs)

        return run

    def both(self) -> Run:
        """The scan and all its gradients."""
        leaves = [entry.detach().requires_grad_() for entry in self.inputs]
        dy = torch.randn_like(self.scan(*leaves))

        def run() -> None:
            torch.autograd.grad(self.scan(*leaves), leaves, dy)

        return run


def ours(case: Case) -> Contender:
    """The matrix-state scan, gates and rotations included."""
    from kssm.ops.matrix_scan import MatrixParameters, matrix_scan

    pairs = case.width // 2
    heads, device = case.heads, case.device

    def scan(*inputs: Tensor) -> Tensor:
        x, b, c, alpha, dt, omega, *parameters = inputs
        return matrix_scan(x, b, c, alpha, dt, omega, MatrixParameters(*parameters))[0]

    parameters = (
        torch.zeros(heads, device=device),
        torch.linspace(-7, -1, heads, device=device),
        torch.logspace(-3, 0, pairs, device=device).unsqueeze(0),
    )
    shared = [case.draw(1, case.width) for _ in range(2)]
    gates = [case.draw(heads), case.draw(heads), case.draw(1, pairs)]
    return Contender(scan, (case.draw(heads, case.values), *shared, *gates, *parameters))


def ssd(case: Case) -> Contender:
    """Mamba-2's scan (mamba-ssm, Triton), with its default chunk."""
    module: Any = importlib.import_module("mamba_ssm.ops.triton.ssd_combined")

    def scan(*inputs: Tensor) -> Tensor:
        x, dt, a, b, c, bias = inputs
        options = {"chunk_size": 256, "dt_bias": bias, "dt_softplus": True}
        return module.mamba_chunk_scan_combined(x, dt, a, b, c, **options)

    a = -torch.rand(case.heads, device=case.device) - 0.5
    bias = torch.linspace(-7, -1, case.heads, device=case.device)
    b, c = (case.draw(1, case.width) for _ in range(2))
    return Contender(
        scan, (case.draw(case.heads, case.values), case.draw(case.heads), a, b, c, bias)
    )


def mamba3(case: Case) -> Contender:
    """Mamba-3's single-input scan (mamba-ssm, Triton): a quarter of the width in angles."""
    module: Any = importlib.import_module("mamba_ssm.ops.triton.mamba3.mamba3_siso_combined")

    def scan(*inputs: Tensor) -> Tensor:
        return module.mamba3_siso_combined(*inputs, chunk_size=64)

    shape = (case.batch, case.heads, case.tokens)
    dt = 0.1 * torch.rand(shape, device=case.device)
    decay = -dt * torch.rand(shape, device=case.device)
    mix = torch.randn(shape, device=case.device, dtype=torch.bfloat16)
    biases = [torch.ones(case.heads, case.width, device=case.device) for _ in range(2)]
    angles = case.draw(1, case.width // 4, dtype=torch.float32).expand(-1, -1, case.heads, -1)
    keys = [case.draw(1, case.width) for _ in range(2)]
    values = case.draw(case.heads, case.values)
    return Contender(scan, (*keys, values, decay, dt, mix, *biases, angles))


def simple_gla(case: Case) -> Contender:
    """flash-linear-attention's scan with one decay a head, and queries and keys of its own."""
    module: Any = importlib.import_module("fla.ops.simple_gla")
    decay = -0.1 * torch.rand(case.batch, case.tokens, case.heads, device=case.device)
    return _attention(case, module.chunk_simple_gla, decay)


def gla(case: Case) -> Contender:
    """flash-linear-attention's gated linear attention: a decay for every key of a head."""
    module: Any = importlib.import_module("fla.ops.gla")
    return _attention(case, module.chunk_gla, _decays(case))


def rwkv6(case: Case) -> Contender:
    """flash-linear-attention's RWKV-6: a decay for every key, and a bonus for the token's own."""
    module: Any = importlib.import_module("fla.ops.rwkv6")
    bonus = torch.randn(case.heads, case.width, device=case.device, dtype=torch.bfloat16)
    return _attention(case, module.chunk_rwkv6, _decays(case), bonus)


def _decays(case: Case) -> Tensor:
    return (-0.1 * case.draw(case.heads, case.width, dtype=torch.float32).abs()).bfloat16()


def _attention(case: Case, op: Callable[..., Any], *gates: Tensor) -> Contender:
    """flash-linear-attention's order: queries, keys, values, gates."""
    keys = [case.draw(case.heads, case.width) for _ in range(2)]
    values = case.draw(case.heads, case.values)
    return Contender(lambda *inputs: op(*inputs)[0], (*keys, values, *gates))


CONTENDERS: dict[str, Callable[[Case], Contender]] = {
    "ours": ours,
    "ssd": ssd,
    "mamba3": mamba3,
    "simple_gla": simple_gla,
    "gla": gla,
    "rwkv6": rwkv6,
}
