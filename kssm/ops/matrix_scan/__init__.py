"""The matrix-state KSSM recurrence: a scan over whole sequences and an in-place step.

A head keeps P values for each of N damped rotations, shared by the group of heads it belongs to:

    D = token_dt softplus(dt + dt_bias)           q = D softplus(alpha + alpha_bias) / 2
    u = q / sqrt(1 + q²)                          v = token_dt rate (1 + omega) / 2
    h_t = (1 - u) / (1 + u) (1 - i v) / (1 + i v) h_{t-1} + D / ((1 + u) (1 + i v)) x_t b_t
    y_t = sum over pairs of Re(conj(c_t) h_t)

Arithmetic is fp32 for 16-bit and fp32 inputs, fp64 for fp64 inputs; matrix products of 16-bit
inputs take 16-bit factors and add in fp32. The README beside this file has the derivation and the
kernels' design.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from kssm.ops.backends import Backend, choose
from kssm.ops.eager import outside_graph
from kssm.ops.launch import triton_installed
from kssm.ops.matrix_scan.checks import check_arena, check_optional, check_tokens
from kssm.ops.matrix_scan.chunked import scan_chunked
from kssm.ops.matrix_scan.gates import MatrixParameters
from kssm.ops.matrix_scan.reference import scan_reference
from kssm.ops.matrix_scan.step import step_torch_

__all__ = ["Backend", "MatrixParameters", "matrix_scan", "matrix_step_"]

_Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def matrix_scan(
    x: Tensor,
    b: Tensor,
    c: Tensor,
    alpha: Tensor,
    dt: Tensor,
    omega: Tensor,
    parameters: MatrixParameters,
    *,
    token_dt: Tensor | None = None,
    initial_state: Tensor | None = None,
    lengths: Tensor | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over sequences.

    Args:
        x: [B, T, H, P]; bf16, fp16, fp32 or fp64, as all the other token inputs.
        b, c: [B, T, G, 2 N], real parts and then imaginary parts; head h reads h // (H // G).
        alpha, dt: [B, T, H] deviations of a head's decay rate and step.
        omega: [B, T, G, N] relative deviations of the rotations' rates.
        parameters: alpha_bias, dt_bias [H], rate [G, N], fp32 (fp64 with fp64 inputs).
        token_dt: [B, T] factor of the step; 0 leaves the state untouched. No gradient.
        initial_state: [B, H, P, N, 2] pairs (real, imaginary); None = zeros.
        lengths: [B] int; tokens at or after it leave the state untouched and their y is 0.
        backend: None picks by device, dtype and sizes. ``triton`` takes P and 2 N from 16 to 128,
            powers of two, and no fp64.

    Returns:
        y [B, T, H, P] in x's dtype, and the last state [B, H, P, N, 2] in fp32 (fp64).

    Differentiable once in the token inputs, the parameters and ``initial_state``.

    Raises:
        InvalidInputError: codes ``wrong_shape``, ``wrong_dtype``, ``wrong_device``,
            ``unknown_backend``, ``backend_unavailable``.
    """
    inputs = (x, b, c, alpha, dt, omega)
    return outside_graph(_scan)(inputs, parameters, token_dt, initial_state, lengths, backend)


def matrix_step_(
    x: Tensor,
    b: Tensor,
    c: Tensor,
    alpha: Tensor,
    dt: Tensor,
    omega: Tensor,
    parameters: MatrixParameters,
    state: Tensor,
    slots: Tensor,
    *,
    token_dt: Tensor | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """Advance one token for each of R rows, changing their arena slots in place.

    Args:
        x: [R, H, P]; b, c: [R, G, 2 N]; alpha, dt: [R, H]; omega: [R, G, N]; as in
            ``matrix_scan``.
        state: arena [S, H, P, N, 2], contiguous, fp32 (fp64 with fp64 inputs).
        slots: [R] int64, distinct but for -1, which marks a padding row (y = 0, nothing written).
        token_dt: [R] factor of the step; 0 leaves the slot untouched, bit for bit.

    Returns:
        y [R, H, P] in x's dtype. A value's pairs of which one would not be finite are not written
        (the old ones are kept) and its y is not finite, so that the caller can tell.

    No gradient. Raises as ``matrix_scan``. Slots at or above S are not checked on a GPU.
    """
    inputs = (x, b, c, alpha, dt, omega)
    return outside_graph(_step_)(inputs, parameters, state, slots, token_dt, backend)


def _scan(
    inputs: _Inputs,
    parameters: MatrixParameters,
    token_dt: Tensor | None,
    initial_state: Tensor | None,
    lengths: Tensor | None,
    backend: Backend | None,
) -> tuple[Tensor, Tensor]:
    """Check, choose and run."""
    check_tokens(*inputs, parameters, leading=2)
    x, omega = inputs[0], inputs[5]
    batch, tokens, heads, values = x.shape
    check_optional("token_dt", token_dt, (batch, tokens), x.device)
    pairs = omega.shape[-1]
    check_optional("initial_state", initial_state, (batch, heads, values, pairs, 2), x.device)
    check_optional("lengths", lengths, (batch,), x.device, integer=True)
    if token_dt is not None:
        token_dt = token_dt.detach()
    fits = _fits(values) and _fits(2 * pairs)
    scan = _scan_implementation(_choose(backend, x, tokens, fits=fits))
    return scan(*inputs, parameters, token_dt, initial_state, lengths)


@torch.no_grad()
def _step_(
    inputs: _Inputs,
    parameters: MatrixParameters,
    state: Tensor,
    slots: Tensor,
    token_dt: Tensor | None,
    backend: Backend | None,
) -> Tensor:
    """Check, choose and run."""
    check_tokens(*inputs, parameters, leading=1)
    x, omega = inputs[0], inputs[5]
    check_optional("token_dt", token_dt, x.shape[:1], x.device)
    check_arena(state, slots, (*x.shape[1:], omega.shape[-1], 2), parameters.rate.dtype, x)
    step = step_torch_
    fits = all(size & (size - 1) == 0 for size in (x.shape[-1], omega.shape[-1]))
    if _choose(backend, x, 1, fits=fits) == "triton":
        step = importlib.import_module("kssm.ops.matrix_scan.kernel").step_triton_
    return step(*inputs, parameters, state, slots, token_dt)


def _choose(backend: Backend | None, x: Tensor, tokens: int, *, fits: bool) -> Backend:
    """The backend asked for, or the fastest that can take ``x``.

    ``fits``: the Triton kernels take its sizes.
    """
    possible = fits and x.dtype != torch.float64 and triton_installed()
    return choose(backend, tokens, possible=possible, worth_it=lambda: x.is_cuda)


def _fits(width: int) -> bool:
    """Whether tiles of this width make matrix products of a kernel."""
    return width in (16, 32, 64, 128)


def _scan_implementation(backend: Backend) -> Callable[..., tuple[Tensor, Tensor]]:
    """The function behind a backend; Triton is imported only when it is asked for."""
    if backend == "reference":
        return scan_reference
    if backend == "chunked":
        return scan_chunked
    return importlib.import_module("kssm.ops.matrix_scan.kernel").scan_triton
