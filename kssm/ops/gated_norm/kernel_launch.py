"""Launching the Triton kernels, and their place in autograd."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from kssm.ops.gated_norm.kernel import backward_kernel, forward_kernel
from kssm.ops.joint import Place
from kssm.ops.launch import blocks_of, flat_rows, on_device


class Cut(NamedTuple):
    """Cells of a block of rows, rows of a program, and cells a thread of each block."""

    cells: int
    rows: int
    each: int


# The quickest of six to eight cuts on an H200, widths 512 to 2,048.
GATED_FORWARD, GATED_BACKWARD = Cut(2048, 64, 16), Cut(1024, 256, 8)
PLAIN_FORWARD, PLAIN_BACKWARD = Cut(2048, 16, 8), Cut(1024, 128, 16)


class Norm(NamedTuple):
    """What both passes read; ``skip`` and ``value`` belong together, and they and the gate may be
    absent."""

    x: Tensor
    weight: Tensor
    value: Tensor | None
    skip: Tensor | None
    gate: Tensor | None


def gated_norm_triton(
    x: Tensor,
    weight: Tensor,
    group_size: int,
    eps: float,
    value: Tensor,
    skip: Tensor,
    gate: Tensor,
    dtype: torch.dtype,
    place: Place | None = None,
) -> Tensor:
    """As ``gated_norm``."""
    return _GatedNorm.apply(x, weight, value, skip, gate, group_size, eps, dtype, place)


def residual_norm_triton(
    x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype, plus: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As ``residual_norm``."""
    return _ResidualNorm.apply(x, weight, plus, eps, dtype)


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        value: Tensor,
        skip: Tensor,
        gate: Tensor,
        group_size: int,
        eps: float,
        dtype: torch.dtype,
        place: Place | None,
    ) -> Tensor:
        norm = Norm(x, weight.contiguous(), value, skip.contiguous(), gate)
        ctx.save_for_backward(*norm)
        ctx.numbers, ctx.place = (group_size, eps), place
        return forward(norm, group_size, eps, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        norm = Norm(*ctx.saved_tensors)
        return *backward(norm, *ctx.numbers, dout, None, place=ctx.place), None, None, None, None


class _ResidualNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, plus: Tensor | None, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        weight = weight.contiguous()
        total = (
            x.view_as(x) if plus is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
        )
        norm = Norm(x, weight, None, None, None)
        out = forward(norm, x.shape[-1], eps, dtype, plus=plus, total=total)
        ctx.save_for_backward(x if plus is None else total, weight)
        ctx.eps, ctx.plus = eps, None if plus is None else plus.dtype
        return out, total

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dout: Tensor | None, residual: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        dx, dweight = residual, None
        if dout is not None:
            x, weight = ctx.saved_tensors
            norm = Norm(x, weight, None, None, None)
            dx, dweight, *_ = backward(norm, x.shape[-1], ctx.eps, dout, residual)
        dplus = None if dx is None or ctx.plus is None else dx.to(ctx.plus)
        return dx, dweight, dplus, None, None


def forward(
    norm: Norm,
    group_size: int,
    eps: float,
    dtype: torch.dtype,
    cut: Cut | None = None,
    plus: Tensor | None = None,
    total: Tensor | None = None,
) -> Tensor:
    """The result [..., C], contiguous; with ``plus`` that of x + plus, which is left in ``total``
    (contiguous)."""
    x, value, gate, added = (_rows(t) for t in (norm.x, norm.value, norm.gate, plus))
    assert x is not None
    rows, channels = x.shape
    out = torch.empty(norm.x.shape, dtype=dtype, device=x.device)
    sizes, parts = _sizes(
        rows, group_size, cut or (PLAIN_FORWARD if gate is None else GATED_FORWARD)
    )
    with on_device(x.device):
        forward_kernel[(parts * (channels // group_size),)](
            x, norm.weight, value, norm.skip, gate, added, None if added is None else total, out,
            x.stride(0), _stride(value), _stride(gate), _stride(added), rows, eps,
            C=channels, **sizes,
        )  # fmt: skip
    return out


def backward(
    norm: Norm,
    group_size: int,
    eps: float,
    dout: Tensor,
    residual: Tensor | None,
    cut: Cut | None = None,
    place: Place | None = None,
) -> tuple[Tensor | None, ...]:
    """Gradients of x (``residual`` added), weight, value, skip and gate (at ``place``)."""
    x, value, gate, dout_rows, residual_rows = (
        _rows(t) for t in (norm.x, norm.value, norm.gate, dout, residual)
    )
    assert x is not None
    assert dout_rows is not None
    rows, channels = x.shape
    dx, dvalue = _like(norm.x), _like(norm.value)
    dgate = _like(norm.gate) if place is None else place.memory()
    sizes, parts = _sizes(
        rows, group_size, cut or (PLAIN_BACKWARD if gate is None else GATED_BACKWARD)
    )
    sums = torch.empty(parts, 2, channels, dtype=torch.float32, device=x.device)
    with on_device(x.device):
        backward_kernel[(parts * (channels // group_size),)](
            dout_rows, x, norm.weight, value, norm.skip, gate, residual_rows,
            dx, dvalue, dgate, sums,
            dout_rows.stride(0), x.stride(0), _stride(value), _stride(gate),
            _stride(residual_rows), _stride(_rows(dgate)), rows, eps, C=channels, **sizes,
        )  # fmt: skip
    total = sums[:, : 1 if norm.skip is None else 2].sum(0)
    dskip = None if norm.skip is None else total[1].to(norm.skip.dtype)
    return dx, total[0].to(norm.weight.dtype), dvalue, dskip, dgate


def _sizes(rows: int, group_size: int, cut: Cut) -> tuple[dict[str, int], int]:
    """Compile-time sizes, and how many programs share a group's rows."""
    block = triton.next_power_of_2(group_size)
    high = max(1, cut.cells // block)
    steps = max(1, cut.rows // high)
    warps = max(1, min(16, high * block // (32 * cut.each)))
    sizes = {"GROUP": group_size, "BLOCK_G": block, "BLOCK_R": high, "STEPS": steps}
    return {**sizes, "num_warps": warps}, blocks_of(rows, high * steps)


def _rows(x: Tensor | None) -> Tensor | None:
    return None if x is None else flat_rows(x)


def _stride(x: Tensor | None) -> int:
    return 0 if x is None else x.stride(0)


def _like(x: Tensor | None) -> Tensor | None:
    """Contiguous memory for the gradient of x."""
    return None if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
