"""Learned diagonal modes, and what one token of given length does to them."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Discretization = Literal["zoh", "bilinear"]


class Modes(NamedTuple):
    """Continuous modes a = -exp(log_decay) + i frequency of D channels, N each.

    log_step: [D] logarithm of a token's length; log_decay, frequency, c_re, c_im: [D, N].
    """

    log_step: Tensor
    log_decay: Tensor
    frequency: Tensor
    c_re: Tensor
    c_im: Tensor


class Transition(NamedTuple):
    """decay and gain [..., D, N] of h_t = decay h_{t-1} + gain x_t, real parts and imaginary."""

    decay_re: Tensor
    decay_im: Tensor
    gain_re: Tensor
    gain_im: Tensor

    def complex(self) -> tuple[Tensor, Tensor]:
        """(decay, gain) as complex tensors."""
        decay = torch.complex(self.decay_re, self.decay_im)
        return decay, torch.complex(self.gain_re, self.gain_im)


def transition(modes: Modes, rule: Discretization, dt: Tensor | None) -> Transition:
    """What a token does, in double precision: an error in the angle grows with every token.

    ``dt`` [...] scales the steps; 0 gives decay 1 and gain 0, bit for bit.
    """
    step = modes.log_step.double().exp().unsqueeze(-1)
    if dt is not None:
        step = dt.double()[..., None, None] * step
    a_re, a_im = -modes.log_decay.double().exp(), modes.frequency.double()
    return _zero_order_hold(a_re, a_im, step) if rule == "zoh" else _bilinear(a_re, a_im, step)


def _zero_order_hold(a_re: Tensor, a_im: Tensor, step: Tensor) -> Transition:
    """Decay exp(step a) and gain (exp(step a) - 1) / a, accurate for small steps too."""
    growth, angle = step * a_re, step * a_im
    grown, half = torch.exp(growth), torch.sin(0.5 * angle)
    decay_re, decay_im = grown * torch.cos(angle), grown * torch.sin(angle)
    less_one = torch.expm1(growth) * torch.cos(angle) - 2.0 * half.square()
    size = a_re.square() + a_im.square()
    gain_re = (less_one * a_re + decay_im * a_im) / size
    return Transition(decay_re, decay_im, gain_re, (decay_im * a_re - less_one * a_im) / size)


def _bilinear(a_re: Tensor, a_im: Tensor, step: Tensor) -> Transition:
    """Decay (1 + step a / 2) / (1 - step a / 2) and gain step / (1 - step a / 2)."""
    re, im = 1.0 - 0.5 * step * a_re, 0.5 * step * a_im
    size = re.square() + im.square()
    gain_re, gain_im = step * re / size, step * im / size
    decay_re = 1.0 + a_re * gain_re - a_im * gain_im
    return Transition(decay_re, a_re * gain_im + a_im * gain_re, gain_re, gain_im)
