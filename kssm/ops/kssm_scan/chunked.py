"""The recurrence in vectorised PyTorch: sequential over about sqrt(T) positions, not over T.

A segment of up to 1,024 tokens is laid out as chunks of 32. All chunks walk their 32 positions
together from a zero state (the first from the true one) and keep the running product of λ; then
the true state is handed from chunk to chunk and each chunk is corrected by product times state.
The cuts depend on the token's position alone, so a row's numbers do not depend on how many tokens
follow. Segments bound the temporaries; the backward pass recomputes a segment's coefficients and
keeps nothing but the states h.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kssm.ops.kssm_scan.gates import (
    Gates,
    ScanParameters,
    compute_dtype,
    compute_gates,
    drive,
    expand_groups,
    hold_mask,
    past_end,
)

CHUNK = 32
SEGMENT = CHUNK * CHUNK


class Inputs(NamedTuple):
    """What the tokens bring: [B, T, D] four times, then [B, T, G] twice."""

    alpha: Tensor
    omega: Tensor
    dt: Tensor
    x: Tensor
    b_re: Tensor
    b_im: Tensor


def scan_chunked(
    alpha: Tensor,
    omega: Tensor,
    dt: Tensor,
    x: Tensor,
    b_re: Tensor,
    b_im: Tensor,
    parameters: ScanParameters,
    token_dt: Tensor | None = None,
    initial_state: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Shapes, results and gradients as ``kssm_scan``."""
    batch, tokens, channels = x.shape
    if initial_state is None:
        initial_state = x.new_zeros(batch, channels, 2, dtype=compute_dtype(x.dtype))
    hold = hold_mask(tokens, token_dt, lengths)
    inputs = Inputs(alpha, omega, dt, x, b_re, b_im)
    wanted = torch.is_grad_enabled() and any(
        t.requires_grad for t in (*inputs, *parameters, initial_state)
    )
    y, final = _ChunkedScan.apply(wanted, hold, token_dt, initial_state, *inputs, *parameters)
    if lengths is not None:
        y = y.masked_fill(past_end(tokens, lengths)[..., None], 0)
    return y, final


def scan_states(increment: Tensor, value: Tensor, initial: Tensor) -> Tensor:
    """h_t = h_{t-1} + increment_t h_{t-1} + value_t along dim 1, for [B, L, D] and [B, D] start.

    Returns h [B, L, D]. Works for real and complex tensors; no autograd of its own.
    """
    batch, length, channels = value.shape
    chunks = -(-length // CHUNK)
    shape = (batch, chunks, CHUNK, channels)
    mu, v = (_pad(t, chunks * CHUNK).view(shape) for t in (increment, value))
    states = torch.empty_like(v)
    h = v.new_zeros(batch, chunks, channels)
    h[:, 0] = initial
    for j in range(CHUNK):
        h = h + torch.addcmul(v[:, :, j], mu[:, :, j], h)
        states[:, :, j] = h
    if chunks > 1:
        _correct(states, mu)
    return states.view(batch, chunks * CHUNK, channels)[:, :length]


def _correct(states: Tensor, mu: Tensor) -> None:
    """Add to every chunk but the first what the state handed to it contributes.

    The product of λ is kept as what it exceeds one by, for the reason that λ itself is.
    """
    excess = torch.zeros_like(mu[:, 1:, 0])
    excesses = torch.empty_like(mu[:, 1:])
    for j in range(CHUNK):
        excess = excess + torch.addcmul(mu[:, 1:, j], mu[:, 1:, j], excess)
        excesses[:, :, j] = excess
    for k in range(1, states.shape[1]):
        handed = states[:, k - 1, -1:]
        states[:, k] += torch.addcmul(handed, excesses[:, k - 1], handed)


def _pad(values: Tensor, length: int) -> Tensor:
    """Append zeros along dim 1 (a zero increment and value hold the state)."""
    missing = length - values.shape[1]
    if missing == 0:
        return values.contiguous()
    return torch.cat([values, values.new_zeros(values.shape[0], missing, values.shape[2])], dim=1)


def _segment(
    inputs: Inputs, hold: Tensor | None, token_dt: Tensor | None, window: slice
) -> tuple[Inputs, Tensor | None]:
    """One segment in the compute dtype with held tokens zeroed, and its step factor [B, L, 1]."""
    dtype = compute_dtype(inputs.x.dtype)
    parts = [t[:, window].to(dtype) for t in inputs]
    factor = None if token_dt is None else token_dt[:, window, None].to(dtype)
    if hold is not None:
        mask = hold[:, window, None]
        parts = [t.masked_fill(mask, 0) for t in parts]
        factor = (~mask).to(dtype) if factor is None else factor.masked_fill(mask, 0)
    return Inputs(*parts), factor


class _ChunkedScan(torch.autograd.Function):
    """Saves the states h only; see the README for the adjoint's equations."""

    @staticmethod
    def forward(
        ctx: Any,
        wanted: bool,
        hold: Tensor | None,
        token_dt: Tensor | None,
        initial_state: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        inputs, parameters = Inputs(*tensors[:6]), ScanParameters(*tensors[6:])
        tokens = inputs.x.shape[1]
        state = torch.view_as_complex(initial_state.to(compute_dtype(inputs.x.dtype)).contiguous())
        y = torch.empty_like(inputs.x, memory_format=torch.contiguous_format)
        saved = state.new_empty(inputs.x.shape) if wanted else None
        for start in range(0, tokens, SEGMENT):
            window = slice(start, min(start + SEGMENT, tokens))
            part, factor = _segment(inputs, hold, token_dt, window)
            gates = compute_gates(part.alpha, part.omega, part.dt, factor, parameters)
            value = gates.gain * drive(part.x, part.b_re, part.b_im)
            h = scan_states(gates.increment, value, state)
            y[:, window] = parameters.c_re * h.real + parameters.c_im * h.imag
            if saved is not None:
                saved[:, window] = h
            state = h[:, -1]
        if saved is not None:
            ctx.save_for_backward(hold, token_dt, initial_state, saved, *tensors)
        return y, torch.view_as_real(state.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hold, token_dt, initial_state, states, *tensors = ctx.saved_tensors
        inputs, parameters = Inputs(*tensors[:6]), ScanParameters(*tensors[6:])
        dy, carry = gradients[0].to(states.real.dtype), torch.view_as_complex(gradients[1].clone())
        tokens = inputs.x.shape[1]
        grads = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in inputs]
        sums = [torch.zeros_like(p) for p in parameters]
        before = torch.view_as_complex(initial_state.to(states.real.dtype).contiguous())
        for start in reversed(range(0, tokens, SEGMENT)):
            window = slice(start, min(start + SEGMENT, tokens))
            part, factor = _segment(inputs, hold, token_dt, window)
            h = states[:, window]
            first = states[:, start - 1] if start else before
            previous = torch.cat([first[:, None], h[:, :-1]], dim=1)
            gates = compute_gates(part.alpha, part.omega, part.dt, factor, parameters)
            adjoint, carry = _adjoint(gates, parameters, dy[:, window], carry)
            found, frequency = _token_gradients(
                part, factor, gates, parameters, adjoint, 0.5 * (previous + h)
            )
            for whole, piece in zip(grads, found, strict=True):
                whole[:, window] = piece
            shifted = frequency * (part.omega + parameters.omega_bias)
            read = (dy[:, window] * h.real, dy[:, window] * h.imag)
            _accumulate(sums, (found.alpha, found.omega, shifted, found.dt, *read))
        start_gradient = torch.view_as_real(carry.resolve_conj()).to(initial_state.dtype)
        return None, None, None, start_gradient, *grads, *sums


def _adjoint(
    gates: Gates, parameters: ScanParameters, dy: Tensor, carry: Tensor
) -> tuple[Tensor, Tensor]:
    """(G [B, L, D], conj(λ) G of the first token): G_t = conj(λ_{t+1}) G_{t+1} + c dy_t."""
    source = torch.complex(parameters.c_re * dy, parameters.c_im * dy)
    increment = gates.increment.conj()
    pulled = scan_states(
        increment.flip(1).resolve_conj(), (source + increment * source).flip(1), carry
    ).flip(1)
    later = torch.cat([pulled[:, 1:], carry[:, None]], dim=1)
    return source + later, pulled[:, 0]


def _token_gradients(
    part: Inputs,
    factor: Tensor | None,
    gates: Gates,
    parameters: ScanParameters,
    adjoint: Tensor,
    middle: Tensor,
) -> tuple[Inputs, Tensor]:
    """Gradients of the six token inputs in the compute dtype, and that of w [B, L, D].

    With the midpoint m = (h_{t-1} + h_t) / 2: ∂h/∂s = -γ m, ∂h/∂D = r (u - s m), ∂h/∂u = γ.
    """
    channels = part.x.shape[-1]
    b = torch.complex(expand_groups(part.b_re, channels), expand_groups(part.b_im, channels))
    u = drive(part.x, part.b_re, part.b_im)
    pulled = gates.resolvent.conj() * adjoint
    gained = gates.gain.conj() * adjoint
    rate = -gained * middle.conj()
    step = (pulled * (u - gates.rate * middle).conj()).real
    if factor is not None:
        step = step * factor
    to_b = (gained * part.x).unflatten(-1, (part.b_re.shape[-1], -1)).sum(-1)
    gradients = Inputs(
        alpha=rate.real * torch.sigmoid(part.alpha + parameters.alpha_bias),
        omega=rate.imag * parameters.omega_scale,
        dt=step * torch.sigmoid(part.dt + parameters.dt_bias),
        x=(gained * b.conj()).real,
        b_re=to_b.real,
        b_im=to_b.imag,
    )
    return gradients, rate.imag


def _accumulate(sums: list[Tensor], terms: tuple[Tensor, ...]) -> None:
    """Add each [B, L, D] term, summed over rows and tokens, to its [D] total."""
    for total, term in zip(sums, terms, strict=True):
        total.add_(term.sum((0, 1)))
