"""Launching the Triton kernels, and their place in autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kssm.ops.conv_silu.kernel import backward_kernel, forward_kernel
from kssm.ops.joint import Place
from kssm.ops.launch import blocks_of, flat_rows, on_device


class Cut(NamedTuple):
    """Tokens a program walks along (a multiple of four), its channels and its warps."""

    span: int
    channels: int
    warps: int


# The quickest of six or seven cuts on an H200, 640 to 2,176 channels.
FORWARD, BACKWARD = Cut(128, 128, 1), Cut(128, 128, 1)


def conv_silu_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    window: Tensor | None,
    sizes: Sequence[int],
    place: Place | None = None,
) -> tuple[Tensor, ...]:
    """As ``conv_silu``, for up to four taps."""
    return _ConvSilu.apply(x, weight, bias, window, tuple(sizes), place)


class _ConvSilu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        window: Tensor | None,
        sizes: tuple[int, ...],
        place: Place | None,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        weight, bias = weight.contiguous(), bias.contiguous()
        window = None if window is None else window.contiguous()
        ctx.save_for_backward(x, weight, bias, window)
        ctx.sizes, ctx.place = sizes, place
        first, *rest = forward(x, weight, bias, window).split(sizes, dim=-1)
        return first, first.view_as(first), *rest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor | None) -> tuple[Tensor | None, ...]:
        first, again, *rest = incoming
        pairs = [(first, again) if first is not None else (again, None)]
        pairs += [(other, None) for other in rest]
        gradients = backward(*ctx.saved_tensors, ctx.sizes, pairs, place=ctx.place)
        return *gradients, None, None


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, window: Tensor | None, cut: Cut | None = None
) -> Tensor:
    """y [B, T, C], contiguous."""
    cut = cut or FORWARD
    batch, tokens, channels = x.shape
    flat = flat_rows(x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    spans = blocks_of(tokens, cut.span)
    with on_device(x.device):
        forward_kernel[(batch * spans * blocks_of(channels, cut.channels),)](
            flat, weight, bias, window, y, flat.stride(0), tokens, spans,
            C=channels, TAPS=len(weight), SPAN=cut.span, BLOCK_C=cut.channels,
            num_warps=cut.warps,
        )  # fmt: skip
    return y


def backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    window: Tensor | None,
    sizes: Sequence[int],
    incoming: Sequence[tuple[Tensor | None, Tensor | None]],
    cut: Cut | None = None,
    place: Place | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x (at ``place``), weight, bias and window, from those of the pieces of y (one
    or two each)."""
    cut = cut or BACKWARD
    batch, tokens, channels = x.shape
    flat = flat_rows(x)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device) if place is None else place.memory()
    dwindow = None if window is None else torch.empty_like(window)
    spans = blocks_of(tokens, cut.span)
    sums = torch.empty(batch * spans, 5, channels, dtype=torch.float32, device=x.device)
    start = 0
    for size, (given, again) in zip(sizes, incoming, strict=True):
        dy = flat_rows(x.new_zeros(batch, tokens, size) if given is None else given)
        also = None if again is None else flat_rows(again)
        block = min(cut.channels, max(32, 1 << (size - 1).bit_length()))
        part = slice(start, start + size)
        with on_device(x.device):
            backward_kernel[(batch * spans * blocks_of(size, block),)](
                flat[:, part], weight[:, part], bias[part], _part(window, part), dy, also,
                dx[..., part], _part(dwindow, part), sums[..., part],
                flat.stride(0), dy.stride(0), 0 if also is None else also.stride(0),
                dx.stride(1), tokens, spans,
                C=size, ROW=channels, TAPS=len(weight), SPAN=cut.span, BLOCK_C=block,
                num_warps=cut.warps,
            )  # fmt: skip
        start += size
    total = sums.sum(0)
    dweight = total[: len(weight)].flip(0).to(weight.dtype)
    return dx, dweight, total[4].to(bias.dtype), dwindow


def _part(window: Tensor | None, part: slice) -> Tensor | None:
    return None if window is None else window[..., part]
