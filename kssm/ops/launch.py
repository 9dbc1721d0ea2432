"""Choosing and launching Triton kernels."""

from __future__ import annotations

import contextlib
import functools
import importlib.util

import torch
from torch import Tensor


@functools.cache
def triton_installed() -> bool:
    """Whether Triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def runs_triton(x: Tensor, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> bool:
    """Whether Triton kernels that take ``dtypes`` can work on ``x``."""
    return x.is_cuda and x.dtype in dtypes and triton_installed()


def fuses(x: Tensor) -> bool:
    """Whether the kernels that fuse elementwise work take ``x``; torch.compile makes its own."""
    wide = (torch.bfloat16, torch.float16, torch.float32)
    return runs_triton(x, wide) and x.numel() > 0 and not torch.compiler.is_compiling()


def on_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Make ``device`` the current one: Triton launches where CUDA stands."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def blocks_of(size: int, block: int) -> int:
    """How many blocks cover ``size``."""
    return -(-size // block)


def kept_finite(new: Tensor, old: Tensor) -> Tensor:
    """Rows [N, ...] of ``new``, except those not entirely finite: they stay as in ``old``."""
    healthy = torch.isfinite(new).flatten(1).all(1).view(-1, *[1] * (new.dim() - 1))
    return torch.where(healthy, new.to(old.dtype), old)


def flat_rows(x: Tensor) -> Tensor:
    """x [..., C] as [rows, C], each row one run of memory; a copy only where it must be."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if flat.stride(1) == 1 or flat.shape[1] == 1 else flat.contiguous()
