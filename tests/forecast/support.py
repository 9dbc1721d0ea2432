"""Models, signals and comparisons that the tests of the compiled code share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kssm.forecast import ForecasterConfig, SignalForecaster
from kssm.forecast.native import NativeModel, build, library
from kssm.models import KSSMConfig, State

needs_native = pytest.mark.skipif(
    not library.usable_variants() or build.compiler() is None,
    reason="no variant for this processor, or no compiler",
)

RELATIVE = 1e-5
ROWS, TOKENS = 6, 130  # several tiles a row, and tiles that hold the ends of rows

CONFIGS = {
    "default": (ForecasterConfig(), 5, 40),
    "odd": (
        ForecasterConfig(
            KSSMConfig(
                d_model=20, n_layers=3, d_inner=21, d_mlp=0, rank=3, group_size=7, conv_width=3
            ),
            head_horizon=5,
            head_hidden=18,
        ),
        9,
        300,
    ),
    "two taps": (
        ForecasterConfig(
            KSSMConfig(
                d_model=33, n_layers=1, d_inner=40, d_mlp=17, rank=5, group_size=40, conv_width=2
            ),
            head_horizon=4,
            head_hidden=8,
        ),
        6,
        100,
    ),
}


def with_library(model: SignalForecaster, compiled: library.Library | None) -> SignalForecaster:
    model.native = NativeModel(lambda: compiled)
    return model


def shaken(config: ForecasterConfig) -> SignalForecaster:
    """A model none of whose weights has a special value, as after training."""
    torch.manual_seed(3)
    model = SignalForecaster(config).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.add_(0.05 * torch.randn_like(weight))
    return model


def hostile(rows: int, steps: int) -> tuple[Tensor, Tensor]:
    """Values and dt [steps, rows]: walks of many magnitudes, spikes, jumps, constants, gaps."""
    generator = np.random.default_rng(0)
    values = generator.standard_normal((steps, rows)).cumsum(0)
    values *= 10.0 ** generator.integers(-12, 12, rows)
    values[generator.random(values.shape) < 0.02] *= 1e6
    values[generator.random(values.shape) < 0.1] = np.nan
    values[:, 0] = 5.0
    values[:, 1] = 1e9 + 1e-3 * np.arange(steps)
    values[:, 2] = np.where(np.arange(steps) % 7 < 3, 9e29, -9e29)
    values[: steps // 2, 3] = np.nan
    values[::5, 4] = np.inf
    dt = generator.choice([0.01, 0.5, 1.0, 1.5, 2.5, 4.0, 100.0], values.shape)
    return torch.from_numpy(values), torch.from_numpy(dt)


def assert_close(actual: State, expected: State, rows: Tensor) -> None:
    """Every entry of each row within 1e-5 of the row's largest number of its kind."""
    for name, entry in expected.items():
        ours, theirs = actual[name][rows], entry[rows]
        if name == "scaler":
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0, equal_nan=True)
            continue
        scale = theirs.abs().flatten(1).amax(1).reshape(-1, *[1] * (theirs.dim() - 1))
        assert ((ours - theirs).abs() <= RELATIVE * scale + 1e-12).all(), name


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.numpy().tobytes() == b.numpy().tobytes()


def signals(rows: int = ROWS, tokens: int = TOKENS) -> tuple[Tensor, Tensor]:
    values, dt = hostile(rows, tokens)
    return values.t().contiguous(), dt.t().contiguous()


def stepped(
    model: SignalForecaster, values: Tensor, lengths: Tensor, dt: Tensor | None
) -> tuple[State, Tensor]:
    """State and tails after the same samples, one step at a time."""
    rows, tokens = values.shape
    arena, slots = model.initial_state(rows + 1), torch.arange(1, rows + 1)
    tails = torch.full_like(values, torch.nan)
    for t in range(tokens):
        now = slots.masked_fill(lengths <= t, -1)
        step = None if dt is None else dt[:, t].contiguous()
        done = model.native.step_(model, values[:, t].contiguous(), arena, now, step)
        assert done is not None
        tails[:, t] = done[0]
    return {name: entry[1:] for name, entry in arena.items()}, tails


def assert_same(actual: State, expected: State) -> None:
    assert actual.keys() == expected.keys()
    for name, entry in expected.items():
        assert same_bits(actual[name], entry.contiguous()), name
