"""What the recurrence sees of each patch."""

from __future__ import annotations

import torch
from torch import Tensor

from kssm.audio.analysis import Period, Prediction
from kssm.audio.config import AudioConfig


def features(config: AudioConfig) -> int:
    """How many numbers ``describe`` gives a token."""
    return 2 * config.patch + config.orders[0] + config.lags + 3


def describe(
    windows: Tensor,
    linear: Prediction,
    period: Period,
    before: Tensor,
    lost: Tensor,
    config: AudioConfig,
) -> Tensor:
    """Tokens [..., features] of windows [..., history] that end with the patch.

    Args:
        windows: samples, the patch last.
        linear, period: of ``windows``.
        before: [...] level a patch earlier.
        lost: [...] share of the patch's samples that were missing.
        config: of the model.
    """
    units = windows[..., -2 * config.patch :] / linear.level.unsqueeze(-1)
    last = units[..., config.patch :].square().mean(-1)
    columns = (
        torch.log(linear.level / before).clamp(-5.0, 5.0),
        torch.log(last + 1e-4),
        lost,
    )
    # Near 1 and -1 lies what tells resonances apart.
    resonances = torch.atanh(linear.reflection.clamp(-0.9999, 0.9999))
    parts = (units.clamp(-20.0, 20.0), resonances, period.likeness, torch.stack(columns, -1))
    return torch.cat(parts, dim=-1)
