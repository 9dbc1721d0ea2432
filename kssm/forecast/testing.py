"""A tiny forecaster with random weights, for tests of everything around the model."""

from __future__ import annotations

import torch

from kssm.forecast.forecaster import ForecasterConfig, SignalForecaster
from kssm.forecast.resolutions import build_forecaster
from kssm.models import KSSMConfig
from kssm.models.stack import StackConfig

_KSSM = KSSMConfig(d_model=32, n_layers=2, d_inner=32, d_mlp=32, rank=4, group_size=16)


def tiny_forecaster(
    seed: int = 0, backbone: StackConfig = _KSSM, thinning: tuple[int, ...] = ()
) -> SignalForecaster:
    """A deterministic two-layer forecaster of some ten thousand weights, in evaluation mode."""
    config = ForecasterConfig(backbone, head_horizon=16, head_hidden=32, thinning=thinning)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_forecaster(config).eval()
