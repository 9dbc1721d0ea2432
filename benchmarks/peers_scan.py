"""Peers of the element-wise scan: recurrences of other projects, where they are installed.

Each takes the sizes of a ``Case`` and draws inputs of its own kind: what is the same is the
number of rows, tokens and channels. None computes the same recurrence: ours turns a pair a
channel and derives its coefficients from four streams; mamba-ssm's keeps 16 real states a channel
and derives its own too; the others run one real state a channel on coefficients that are given.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers_matrix import Contender
from kssm.ops.kssm_scan import ScanParameters, kssm_scan

GROUP_WIDTH = 64
MAMBA_STATE = 16


@dataclass(frozen=True)
class Case:
    """Sizes of one line of the table."""

    batch: int
    tokens: int
    channels: int
    device: torch.device

    @property
    def elements(self) -> int:
        return self.batch * self.tokens * self.channels

    @property
    def groups(self) -> int:
        return max(1, self.channels // GROUP_WIDTH)

    def draw(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Random numbers of the given shape."""
        return torch.randn(*shape, device=self.device, dtype=dtype)

    def tokens_by(self, width: int) -> Tensor:
        """Random numbers [B, T, width]."""
        return self.draw(self.batch, self.tokens, width)


def ours(case: Case) -> Contender:
    """``kssm_scan`` from its four streams, coefficients included."""

    def scan(*inputs: Tensor) -> Tensor:
        alpha, omega, dt, x, b_re, b_im, *parameters = inputs
        return kssm_scan(alpha, omega, dt, x, b_re, b_im, ScanParameters(*parameters))[0]

    streams = [case.tokens_by(case.channels) for _ in range(4)]
    shared = [case.tokens_by(case.groups) for _ in range(2)]
    parameters = [case.draw(case.channels, dtype=torch.float32) for _ in range(6)]
    parameters[3] -= 3.0
    return Contender(scan, (*streams, *shared, *parameters))


def selective_scan(case: Case) -> Contender:
    """Mamba's scan (mamba-ssm, CUDA): 16 states a channel, softplus of delta inside."""
    module = _selective_scan_module()
    rows, tokens, channels = case.batch, case.tokens, case.channels

    class Scan(torch.autograd.Function):
        """The package's own autograd function, without its optional inputs."""

        @staticmethod
        def forward(ctx: Any, *inputs: Tensor) -> Tensor:
            u, delta, a, b, c, d, bias = inputs
            out, states = module.fwd(u, delta, a, b, c, d, None, bias, True)
            ctx.save_for_backward(*inputs, states)
            return out

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
            u, delta, a, b, c, d, bias, states = ctx.saved_tensors
            dy = gradients[0].contiguous()
            given = (u, delta, a, b, c, d, None, bias, dy, states, None, None)
            return tuple(module.bwd(*given, True, False)[:7])

    u, delta = (case.draw(rows, channels, tokens) for _ in range(2))
    a = -torch.rand(channels, MAMBA_STATE, device=case.device) - 0.5
    b, c = (case.draw(rows, 1, MAMBA_STATE, tokens) for _ in range(2))
    d, bias = (case.draw(channels, dtype=torch.float32) for _ in range(2))
    return Contender(Scan.apply, (u, delta, a, b, c, d, bias))


def _selective_scan_module() -> Any:
    """mamba-ssm's extension: installed, or built from the sources that a variable names."""
    source = os.environ.get("KSSM_SELECTIVE_SCAN")
    if not source:
        return importlib.import_module("selective_scan_cuda")
    from torch.utils import cpp_extension

    undone = [f"-U__CUDA_NO_{kind}__" for kind in _UNDONE]
    files = [str(p) for p in sorted(Path(source).iterdir()) if p.suffix in (".cpp", ".cu")]
    return cpp_extension.load(
        "selective_scan_cuda",
        files,
        extra_cflags=["-O2", "-std=c++20"],
        extra_cuda_cflags=[
            *("-O3", "-std=c++20", "--use_fast_math", "--expt-relaxed-constexpr"),
            *("--expt-extended-lambda", *undone),
        ],
        extra_include_paths=[source],
        build_directory=os.environ.get("KSSM_SELECTIVE_SCAN_BUILD"),
    )


_UNDONE = (
    "HALF_OPERATORS",
    "HALF_CONVERSIONS",
    "BFLOAT16_OPERATORS",
    "BFLOAT16_CONVERSIONS",
    "BFLOAT162_OPERATORS",
    "BFLOAT162_CONVERSIONS",
)


def hgrn(case: Case) -> Contender:
    """flash-linear-attention's HGRN: one real state a channel, gates in logarithms."""
    module: Any = importlib.import_module("fla.ops.hgrn")
    gate = -torch.rand(case.batch, case.tokens, case.channels, device=case.device).bfloat16()
    name = "chunk_hgrn" if case.batch * case.channels < 16_384 else "fused_recurrent_hgrn"
    scan = getattr(module, name)
    return Contender(lambda x, g: scan(x, g)[0], (case.tokens_by(case.channels), gate))


def accelerated_scan(case: Case) -> Contender:
    """accelerated-scan's Triton kernel: one real state a channel, time last."""
    module: Any = importlib.import_module("accelerated_scan.scalar")
    shape = (case.batch, case.channels, case.tokens)
    gate = torch.rand(shape, device=case.device).bfloat16()
    return Contender(module.scan, (gate, case.draw(*shape)))


def associative_scan(case: Case) -> Contender:
    """torch's operator on (gate, value), compiled: one real state a channel."""
    module: Any = importlib.import_module("torch._higher_order_ops.associative_scan")

    def combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> Any:
        return left[0] * right[0], left[1] * right[0] + right[1]

    def scan(gate: Tensor, value: Tensor) -> Tensor:
        return module.associative_scan(combine, (gate, value), 1, combine_mode="pointwise")[1]

    gate = torch.rand(case.batch, case.tokens, case.channels, device=case.device)
    inputs = (gate.bfloat16(), case.tokens_by(case.channels))
    return Contender(torch.compile(scan), inputs)


def attention(case: Case) -> Contender:
    """Causal attention in heads of 64; its work grows with the square of the length."""
    heads = max(1, case.channels // 64)
    width = case.channels // heads
    shape = (case.batch, heads, case.tokens, width)
    function = torch.nn.functional.scaled_dot_product_attention
    draws = tuple(case.draw(*shape) for _ in range(3))
    return Contender(lambda q, k, v: function(q, k, v, is_causal=True), draws)


CONTENDERS: dict[str, Callable[[Case], Contender]] = {
    "ours": ours,
    "selective_scan": selective_scan,
    "hgrn": hgrn,
    "accelerated_scan": accelerated_scan,
    "attention": attention,
    "associative_scan": associative_scan,
}
