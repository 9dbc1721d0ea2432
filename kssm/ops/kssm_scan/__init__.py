"""The element-wise KSSM recurrence: a scan over whole sequences and an in-place step.

    a = softplus(alpha + alpha_bias)          w = omega_scale (omega + omega_bias)
    D = token_dt softplus(dt + dt_bias)       z = (D / 2) (a + i w)
    h_t = (1 - z) / (1 + z) h_{t-1} + D / (1 + z) (b_re + i b_im) x_t
    y_t = c_re Re(h_t) + c_im Im(h_t)

Arithmetic is fp32 for 16-bit and fp32 inputs, fp64 for fp64 inputs. The README beside this file
has the derivation and the kernels' design.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from kssm.errors import InvalidInputError
from kssm.ops.backends import Backend, choose
from kssm.ops.eager import outside_graph
from kssm.ops.kssm_scan.checks import (
    check_devices,
    check_dtype,
    check_optional,
    check_shape,
    check_tokens,
)
from kssm.ops.kssm_scan.chunked import scan_chunked
from kssm.ops.kssm_scan.gates import ScanParameters
from kssm.ops.kssm_scan.packed import check_offsets, scan_packed
from kssm.ops.kssm_scan.reference import scan_reference
from kssm.ops.kssm_scan.step import step_torch_
from kssm.ops.kssm_scan.trial import kernels_hold
from kssm.ops.launch import triton_installed

__all__ = ["Backend", "ScanParameters", "kssm_scan", "kssm_step_"]

_Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def kssm_scan(
    alpha: Tensor,
    omega: Tensor,
    dt: Tensor,
    x: Tensor,
    b_re: Tensor,
    b_im: Tensor,
    parameters: ScanParameters,
    *,
    token_dt: Tensor | None = None,
    initial_state: Tensor | None = None,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over sequences.

    Args:
        alpha, omega, dt, x: [B, T, D], bf16/fp16/fp32 in any mix, or all fp64.
        b_re, b_im: [B, T, G]; channel d reads group d // (D // G).
        parameters: six [D] tensors, fp32 (fp64 with fp64 inputs).
        token_dt: [B, T] factor of the step; 0 leaves the state untouched, bit for bit. No gradient.
        initial_state: [B, D, 2] pairs (real, imaginary); None = zeros.
        lengths: [B] int; tokens at or after it leave the state untouched and their y is 0.
        cu_seqlens: [N + 1] int, rising from 0 to T: the inputs are [1, T, ...] with N sequences
            packed one after the other (some may be empty); states are then [N, D, 2]. Its values
            are not checked on a GPU. Excludes ``lengths``.
        backend: None picks by device and dtype.

    Returns:
        y [B, T, D] in x's dtype, and the last state [B, D, 2] in fp32 (fp64).

    Differentiable once in the token inputs, the parameters and ``initial_state``.

    Raises:
        InvalidInputError: codes ``wrong_shape``, ``wrong_dtype``, ``wrong_device``,
            ``unknown_backend``, ``backend_unavailable``, ``invalid_cu_seqlens``.
    """
    inputs = (alpha, omega, dt, x, b_re, b_im)
    rows = (lengths, cu_seqlens)
    return outside_graph(_scan)(inputs, parameters, token_dt, initial_state, rows, backend)


def kssm_step_(
    alpha: Tensor,
    omega: Tensor,
    dt: Tensor,
    x: Tensor,
    b_re: Tensor,
    b_im: Tensor,
    parameters: ScanParameters,
    state: Tensor,
    slots: Tensor,
    *,
    token_dt: Tensor | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """Advance one token for each of N rows, changing their arena slots in place.

    Args:
        alpha, omega, dt, x: [N, D]; b_re, b_im: [N, G]; as in ``kssm_scan``.
        state: arena [S, D, 2], contiguous, fp32 (fp64 with fp64 inputs).
        slots: [N] int64, distinct but for -1, which marks a padding row (y = 0, nothing written).
        token_dt: [N] factor of the step; 0 leaves the slot untouched, bit for bit.

    Returns:
        y [N, D] in x's dtype. A pair whose new value is not finite is not written (the old one is
        kept) and its y is not finite, so that the caller can tell.

    No gradient. Raises as ``kssm_scan``. Slots at or above S are not checked on a GPU.
    """
    inputs = (alpha, omega, dt, x, b_re, b_im)
    return outside_graph(_step_)(inputs, parameters, state, slots, token_dt, backend)


def _scan(
    inputs: _Inputs,
    parameters: ScanParameters,
    token_dt: Tensor | None,
    initial_state: Tensor | None,
    rows: tuple[Tensor | None, Tensor | None],
    backend: Backend | None,
) -> tuple[Tensor, Tensor]:
    """Check, choose and run; ``rows`` is (lengths, cu_seqlens)."""
    check_tokens(*inputs, parameters, dims=3)
    lengths, offsets = rows
    x = inputs[3]
    batch, tokens, channels = x.shape
    sequences = batch
    if offsets is not None:
        sequences = len(offsets) - 1
        check_optional("cu_seqlens", offsets, (sequences + 1,), x.device, integer=True)
        check_offsets(offsets, batch, tokens, lengths)
    check_optional("token_dt", token_dt, (batch, tokens), x.device)
    check_optional("initial_state", initial_state, (sequences, channels, 2), x.device)
    check_optional("lengths", lengths, (batch,), x.device, integer=True)
    if token_dt is not None:
        token_dt = token_dt.detach()
    chosen = _choose(backend, x, tokens)
    scan = _scan_implementation(chosen)
    if offsets is None:
        return scan(*inputs, parameters, token_dt, initial_state, lengths)
    if chosen == "triton":
        return scan(*inputs, parameters, token_dt, initial_state, None, offsets)
    return scan_packed(scan, inputs, parameters, token_dt, initial_state, offsets)


@torch.no_grad()
def _step_(
    inputs: _Inputs,
    parameters: ScanParameters,
    state: Tensor,
    slots: Tensor,
    token_dt: Tensor | None,
    backend: Backend | None,
) -> Tensor:
    """Check, choose and run."""
    check_tokens(*inputs, parameters, dims=2)
    x = inputs[3]
    rows, channels = x.shape
    check_optional("token_dt", token_dt, (rows,), x.device)
    check_shape("state", state, (*state.shape[:1], channels, 2))
    check_dtype("state", state, (parameters.alpha_bias.dtype,))
    check_shape("slots", slots, (rows,))
    check_dtype("slots", slots, (torch.int64,))
    check_devices(x.device, (state, slots))
    if not state.is_contiguous():
        raise InvalidInputError("the state arena must be contiguous", code="wrong_shape")
    step = step_torch_
    if _choose(backend, x, 1) == "triton":
        step = importlib.import_module("kssm.ops.kssm_scan.kernel").step_triton_
    return step(*inputs, parameters, state, slots, token_dt)


def _choose(backend: Backend | None, x: Tensor, tokens: int) -> Backend:
    """The backend asked for, or the fastest that can take ``x``."""

    def worth_it() -> bool:
        learning = torch.is_grad_enabled() and x.requires_grad
        return x.is_cuda and (tokens == 1 or kernels_hold(x.device, x.dtype, learning))

    possible = x.dtype != torch.float64 and triton_installed()
    return choose(backend, tokens, possible=possible, worth_it=worth_it)


def _scan_implementation(backend: Backend) -> Callable[..., tuple[Tensor, Tensor]]:
    """The function behind a backend; Triton is imported only when it is asked for."""
    if backend == "reference":
        return scan_reference
    if backend == "chunked":
        return scan_chunked
    return importlib.import_module("kssm.ops.kssm_scan.kernel").scan_triton
