"""Arenas of forecasts that the tests of reading share."""

from __future__ import annotations

import torch
from torch import Tensor

from kssm.forecast import SignalForecaster
from kssm.models import State


def random_arena(
    model: SignalForecaster, slots: int, seed: int = 0, device: torch.device | str = "cpu"
) -> State:
    """States as no signal leaves them: any clock, any contest, magnitudes of 1e-6 to 1e6.

    Slot 1 is fresh, slot 2 has a forecast that is not finite; copies that were never judged hold
    no number at all.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    arena = {name: entry.cpu() for name, entry in model.initial_state(slots).items()}
    units = 10.0 ** normal(slots, 1).mul(3).clamp(-6, 6)
    sums = normal(slots, len(model.config.thinning), 2, 3).exp()
    sums[..., 2] = (normal(*sums.shape[:-1]) * 8).floor().clamp_min(0)
    for name, entry in arena.items():
        if name.endswith("forecast"):
            spread = normal(slots, 1, 1).exp() * 3  # some reach past the bound on quantiles
            entry.copy_((normal(*entry.shape) * spread).sort(-1).values)
        elif name.endswith("scaler"):
            entry.copy_(normal(*entry.shape) * units)
            entry[:, 0], entry[:, 2] = 5.0, units[:, 0].square()
    for i, factor in enumerate(model.config.thinning):
        never = (sums[:, i, :, 2] == 0).any(-1)
        arena[f"every{factor}.forecast"][never] = torch.nan
    if "contest" in arena:
        arena["contest"].copy_(sums)
        arena["clock"].copy_((normal(slots, 1) * 1000).abs().floor())
    arena["scaler"][1, 0] = 0.0
    arena["forecast"][2] = torch.nan
    return {name: entry.to(device) for name, entry in arena.items()}
