"""Whether a GPU's compiler gets the scan right, found out by trying it once.

Triton 3.4 to 3.7.0 is known to miscompile gated kernels on some GPUs, silently.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kssm.ops.kssm_scan.chunked import scan_chunked
from kssm.ops.kssm_scan.cuda_program import CudaError
from kssm.ops.kssm_scan.gates import ScanParameters

_SHAPES = ((3, 150, 128, 2), (1, 2500, 64, 1), (600, 20, 64, 1))
"""Rows, tokens, channels and groups: a batch, a row that is split over the GPU, and many rows."""

_LIMITS = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 5e-2}
"""Far above rounding (4e-6 and 1.5e-2 were seen), far below what a miscompiled kernel does."""

_log = logging.getLogger(__name__)


@functools.cache
def kernels_hold(device: torch.device, dtype: torch.dtype, gradients: bool) -> bool:
    """Whether the Triton scan agrees with PyTorch in fp64 on ``device``, gradients too if asked.

    Tried once for each; the trial takes some tens of milliseconds beside the compilation.
    """
    try:
        with torch.inference_mode(False), torch.set_grad_enabled(gradients):
            good = all(_agrees(shape, device, dtype, gradients) for shape in _SHAPES)
    except CudaError as error:
        _log.error("%s", error.message)
        good = False
    if not good:
        _log.error("the compiled scan is wrong on %s for %s: plain PyTorch it is", device, dtype)
    return good


def _agrees(
    shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype, gradients: bool
) -> bool:
    tokens, parameters, state = _inputs(shape)
    tokens = [t.to(device, dtype) for t in tokens]
    scan = importlib.import_module("kssm.ops.kssm_scan.kernel").scan_triton
    fast = [*tokens, *(t.to(device) for t in [*parameters, state])]
    exact = [t.double() for t in fast]
    limit = _LIMITS[dtype]
    return all(
        bool((a.double() - b).abs().max() <= limit * b.abs().max())
        for a, b in zip(
            _values(scan, fast, gradients), _values(scan_chunked, exact, gradients), strict=True
        )
    )


def _inputs(shape: tuple[int, int, int, int]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Tokens (six tensors), parameters (six) and a state, with decays from short to long."""
    rows, tokens, channels, groups = shape
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    wide = [draw(rows, tokens, channels) for _ in range(4)]
    narrow = [draw(rows, tokens, groups) for _ in range(2)]
    biases = [draw(channels) for _ in range(6)]
    biases[3] = biases[3] - 4.0  # steps of about 0.02
    return [*wide, *narrow], biases, draw(rows, channels, 2)


def _values(
    scan: Callable[..., tuple[Tensor, Tensor]], inputs: Sequence[Tensor], gradients: bool
) -> list[Tensor]:
    """y, the last state and, if asked, the gradients of a sum of squares of both."""
    leaves = [t.detach().requires_grad_(gradients) for t in inputs]
    y, state = scan(*leaves[:6], ScanParameters(*leaves[6:12]), None, leaves[12], None)
    if not gradients:
        return [y, state]
    loss = y.double().square().sum() + state.double().square().sum()
    return [y.detach(), state.detach(), *torch.autograd.grad(loss, leaves)]
