"""A first-order linear recurrence: vectorised PyTorch, and a Triton kernel on GPUs."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from kssm.errors import InvalidInputError
from kssm.ops.eager import outside_graph
from kssm.ops.launch import runs_triton

__all__ = ["linear_scan"]

_CHUNK = 32
_SEGMENT = _CHUNK * _CHUNK
_KERNEL_DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def linear_scan(decay: Tensor, value: Tensor, initial: Tensor | None = None) -> Tensor:
    """h_t = decay_t h_{t-1} + value_t along dim 1.

    Args:
        decay, value: [B, T, ...], broadcastable against each other, the same floating or
            complex dtype.
        initial: [B, ...], h before the first token; None = zeros.

    Returns:
        h, with the broadcast shape. Differentiable once in all three.

    Raises:
        InvalidInputError: codes ``wrong_shape``, ``wrong_dtype``.
    """
    _check(decay, value, initial)
    try:
        decay, value = torch.broadcast_tensors(decay, value)
        if initial is not None:
            initial = initial.expand(value[:, 0].shape)
    except RuntimeError as error:
        raise InvalidInputError(str(error), code="wrong_shape") from error
    if initial is None:
        initial = value.new_zeros(value[:, 0].shape)
    flat = (*value.shape[:2], -1)
    scan = outside_graph(_LinearScan.apply)
    states = scan(decay.reshape(flat), value.reshape(flat), initial.reshape(flat[0], -1))
    return states.view(value.shape)


def _check(decay: Tensor, value: Tensor, initial: Tensor | None) -> None:
    given = (decay, value) if initial is None else (decay, value, initial)
    if value.dim() < 2 or decay.dim() != value.dim() or 0 in value.shape:
        raise InvalidInputError("decay and value must be [B, T, ...]", code="wrong_shape")
    numeric = value.is_floating_point() or value.is_complex()
    if any(t.dtype != value.dtype for t in given) or not numeric:
        raise InvalidInputError("decay, value, initial need one dtype", code="wrong_dtype")


class _LinearScan(torch.autograd.Function):
    """The adjoint is the same recurrence backwards: G_t = dh_t + conj(decay_{t+1}) G_{t+1}."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, value: Tensor, initial: Tensor) -> Tensor:
        states = _scan(decay, value, initial)
        ctx.save_for_backward(decay, states, initial)
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        decay, states, initial = ctx.saved_tensors
        source = gradients[0].flip(1)
        following = torch.zeros_like(decay)
        following[:, :-1] = decay[:, 1:].conj()
        adjoint = _scan(following.flip(1), source, torch.zeros_like(initial)).flip(1)
        previous = torch.cat([initial[:, None], states[:, :-1]], dim=1).conj()
        return adjoint * previous, adjoint, adjoint[:, 0] * decay[:, 0].conj()


def _scan(decay: Tensor, value: Tensor, initial: Tensor) -> Tensor:
    """[B, T, K] and [B, K] -> [B, T, K]: by the kernel, or segment by segment."""
    if runs_triton(value, _KERNEL_DTYPES):
        return importlib.import_module("kssm.ops.linear_scan.kernel").scan_triton(
            decay, value, initial
        )
    states = torch.empty_like(value, memory_format=torch.contiguous_format)
    for start in range(0, value.shape[1], _SEGMENT):
        window = slice(start, start + _SEGMENT)
        states[:, window] = _segment(decay[:, window], value[:, window], initial)
        initial = states[:, min(start + _SEGMENT, value.shape[1]) - 1]
    return states


def _segment(decay: Tensor, value: Tensor, initial: Tensor) -> Tensor:
    """All chunks walk their positions together, then the state is handed from chunk to chunk."""
    batch, length, channels = value.shape
    chunks = -(-length // _CHUNK)
    shape = (batch, chunks, _CHUNK, channels)
    padding = (0, 0, 0, chunks * _CHUNK - length)
    decays = torch.nn.functional.pad(decay, padding).view(shape)
    states = torch.nn.functional.pad(value, padding).view(shape).clone()
    states[:, 0, 0] += decays[:, 0, 0] * initial
    products = decays.clone() if chunks > 1 else decays
    for j in range(1, _CHUNK):
        states[:, :, j].addcmul_(decays[:, :, j], states[:, :, j - 1])
        if chunks > 1:
            products[:, :, j] *= products[:, :, j - 1]
    for k in range(1, chunks):
        states[:, k] += products[:, k] * states[:, k - 1, -1:]
    return states.view(batch, chunks * _CHUNK, channels)[:, :length]
