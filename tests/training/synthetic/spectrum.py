"""What rows of signals are made of."""

from __future__ import annotations

import torch
from torch import Tensor


def power_spectrum(x: Tensor) -> Tensor:
    """Periodogram of the centred rows, ``[rows, length // 2 + 1]``."""
    return torch.fft.rfft(x - x.mean(1, keepdim=True)).abs().square()
