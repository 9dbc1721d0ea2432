"""A tiny audio forecaster with random weights, and sounds to feed it."""

from __future__ import annotations

import numpy as np
import torch

from kssm.audio import AudioConfig, AudioForecaster
from kssm.models import KSSMConfig

TINY = AudioConfig(
    patch=8,
    block=4,
    history=64,
    horizon=24,
    shortest_lag=6,
    longest_lag=28,
    orders=(4, 8, 12),
    memories=(0.9, 0.92, 0.95),
    sample_hidden=16,
    outlook_hidden=24,
    backbone=KSSMConfig(d_model=16, n_layers=2, d_inner=16, d_mlp=16, rank=4, group_size=8),
)


def tiny_audio(seed: int = 0) -> AudioForecaster:
    """Random weights, in evaluation mode."""
    torch.manual_seed(seed)
    return AudioForecaster(TINY).eval().requires_grad_(False)


def sound(samples: int, rows: int = 1, seed: int = 0) -> torch.Tensor:
    """Two tones and a little noise [rows, samples], float64."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples)
    frequency = rng.uniform(0.04, 0.3, (2, rows, 1))
    tones = np.sin(2 * np.pi * frequency * time).sum(0)
    return torch.from_numpy(tones + 0.05 * rng.normal(size=(rows, samples)))
