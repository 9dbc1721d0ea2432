"""Diagonal complex state spaces in plain PyTorch: one input and one output a channel, N modes.

``diagonal_convolution`` is for steps that are all alike, ``diagonal_scan`` for any steps. The
convolution is done as matrix products over chunks, not by FFT: the rounding of an FFT spreads over
the whole sequence, so a later token would move earlier outputs in their last bits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from kssm.ops.diagonal_scan.modes import Discretization, Modes, Transition, transition
from kssm.ops.diagonal_scan.step import diagonal_step_
from kssm.ops.eager import outside_graph
from kssm.ops.linear_scan import linear_scan
from kssm.ops.pieces import in_pieces, piece_length

__all__ = [
    "Discretization",
    "Modes",
    "Transition",
    "convolution_kernel",
    "diagonal_convolution",
    "diagonal_scan",
    "diagonal_step_",
    "transition",
]

_CHUNK = 64

Advance = Callable[[Tensor], tuple[Tensor, Tensor]]
"""dt [...] -> decay and gain [..., D, N], complex128; 1 and 0 where dt is 0."""


def diagonal_scan(
    x: Tensor, dt: Tensor, advance: Advance, c: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """h_t = decay_t h_{t-1} + gain_t x_t ; y_t = 2 Re(c . h_t) for every channel.

    Args:
        x: [B, T, D] real.
        dt: [B, T] factors on the steps; a token with dt = 0 leaves the state untouched.
        advance: gives decay_t and gain_t from dt_t.
        c: [D, N] complex.
        state: [B, D, N] complex, before the first token.

    Returns:
        y [B, T, D] and the state after the last token.

    Computed in double precision throughout: rounded decays would add up over the tokens.
    """

    def piece(state: Tensor, x: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
        decay, gain = advance(dt)
        states = linear_scan(decay, gain * x.unsqueeze(-1), state)
        return 2.0 * (states * c).real.sum(-1).to(x.dtype), states[:, -1].clone()

    wide = state.to(torch.complex128)
    y, after = in_pieces(piece, wide, (x, dt), piece_length(x.device))
    return y, after.to(state.dtype)


def convolution_kernel(decay: Tensor, gain: Tensor, c: Tensor, length: int) -> Tensor:
    """K_l = 2 Re(sum_n c gain decay^l) [D, length]: y = K * x when the state starts at zero."""
    return _kernel(_powers(decay, length).to(c.dtype), gain.to(c.dtype), c)


def diagonal_convolution(
    x: Tensor, decay: Tensor, gain: Tensor, c: Tensor, state: Tensor, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``diagonal_scan`` with the same decay and gain [D, N] at every token.

    Args:
        x, c, state: as in ``diagonal_scan``; x must be finite everywhere.
        decay, gain: [D, N] complex128, so that powers of the decay are exact.
        lengths: [B] number of valid tokens, None = all; outputs behind them mean nothing.

    Returns:
        y [B, T, D] and the state after the last valid token.
    """
    return outside_graph(_without_autocast)(x, decay, gain, c, state, lengths)


def _without_autocast(
    x: Tensor, decay: Tensor, gain: Tensor, c: Tensor, state: Tensor, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compilers know little of complex numbers."""
    with torch.autocast(x.device.type, enabled=False):
        return _convolve(x, decay, gain, c, state, lengths)


def _convolve(
    x: Tensor, decay: Tensor, gain: Tensor, c: Tensor, state: Tensor, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    rows, tokens, channels = x.shape
    size = min(_CHUNK, tokens)
    powers = _powers(decay, size + 1).to(c.dtype)  # [D, L + 1, N]
    gain = gain.to(c.dtype)
    chunks = F.pad(x, (0, 0, 0, -tokens % size)).unflatten(1, (-1, size))
    columns = chunks.permute(3, 2, 0, 1).reshape(channels, size, -1)  # [D, L, B * K]

    push = powers[:, :size].flip(1) * gain.unsqueeze(1)  # what is left of a token at the end
    starts = _starts(_push(push, columns), powers[:, -1], state)  # [D, B, K + 1, N]
    carry = 2.0 * torch.view_as_real((powers[:, 1:] * c.unsqueeze(1)).conj().resolve_conj())
    before = torch.view_as_real(starts[:, :, :-1]).reshape(channels, columns.shape[-1], -1)
    y = _toeplitz(_kernel(powers[:, :size], gain, c)) @ columns
    y = y + carry.flatten(2) @ before.transpose(1, 2)
    y = y.view(channels, size, rows, -1).permute(2, 3, 1, 0).flatten(1, 2)[:, :tokens]
    if lengths is None and tokens % size == 0:
        return y, starts[:, :, -1].transpose(0, 1)
    if lengths is None:
        lengths = torch.full((rows,), tokens, device=x.device)
    return y, _final(x, push, powers, starts, lengths)


def _powers(decay: Tensor, count: int) -> Tensor:
    """decay^0 ... decay^(count - 1): [D, N] -> [D, count, N], complex128."""
    factor = decay.to(torch.complex128).unsqueeze(1)
    powers = torch.ones_like(factor)
    while powers.shape[1] < count:
        powers = torch.cat([powers, powers * factor], dim=1)
        factor = factor * factor
    return powers[:, :count]


def _kernel(powers: Tensor, gain: Tensor, c: Tensor) -> Tensor:
    return 2.0 * (powers @ (c * gain).unsqueeze(-1)).squeeze(-1).real


def _toeplitz(kernel: Tensor) -> Tensor:
    """[D, L] -> [D, L, L] with kernel[i - j] for j <= i, else 0."""
    places = torch.arange(kernel.shape[-1], device=kernel.device)
    distance = places.unsqueeze(1) - places
    return torch.where(distance >= 0, kernel[:, distance.clamp_min(0)], 0.0)


def _push(push: Tensor, columns: Tensor) -> Tensor:
    """What tokens [D, L, M] add to the state: [D, M, N] complex."""
    pairs = torch.view_as_real(push).flatten(2)
    return torch.view_as_complex((columns.transpose(1, 2) @ pairs).unflatten(-1, (-1, 2)))


def _starts(pushed: Tensor, decay: Tensor, state: Tensor) -> Tensor:
    """States before each chunk and after the last: [D, B, K + 1, N]."""
    added = pushed.unflatten(1, (len(state), -1)).permute(1, 2, 0, 3)  # [B, K, D, N]
    ends = linear_scan(decay.expand_as(added), added, state)
    return torch.cat([state.unsqueeze(1), ends], dim=1).permute(2, 0, 1, 3)


def _final(x: Tensor, push: Tensor, powers: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """State after ``lengths`` tokens [B, D, N], from the last full chunk and the rest behind it."""
    size = push.shape[1]
    chunk, rest = lengths // size, lengths % size
    places = torch.arange(-size, 0, device=x.device)
    index = (lengths.unsqueeze(1) + places).clamp_min(0).unsqueeze(-1)
    tail = x.gather(1, index.expand(-1, -1, x.shape[2]))
    tail = tail.masked_fill((places < -rest.unsqueeze(1)).unsqueeze(-1), 0.0)
    added = _push(push, tail.permute(2, 1, 0))  # [D, B, N]
    rows = torch.arange(len(x), device=x.device)
    return (powers[:, rest] * starts[:, rows, chunk] + added).transpose(0, 1)
