"""The kernels of the convolution's, S4D's and the linear scan's tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.ops.kernels import DEVICE, ON_GPU, draw, worst

pytest.importorskip("triton")

from kssm.ops.conv_step import conv_step_
from kssm.ops.conv_step.kernel import conv_step_triton_
from kssm.ops.diagonal_scan import Discretization, Modes, diagonal_step_
from kssm.ops.diagonal_scan.kernel_step import diagonal_step_triton_
from kssm.ops.linear_scan import linear_scan
from kssm.ops.linear_scan.kernel import scan_triton
from kssm.ops.token_shift import BOUND, shift_step_
from kssm.ops.token_shift.kernel import shift_step_triton_

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's NaNs

CHANNELS = 640 if ON_GPU else 13


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.usefixtures("poisoned")
def test_the_convolution(silu):
    both = draw(3, 2 * CHANNELS, seed=0)
    both[2, 4] = torch.inf
    weight, bias, windows = (draw(4, CHANNELS, seed=1), draw(CHANNELS, seed=2), None)
    windows = draw(6, 3, CHANNELS, seed=3)
    slots = torch.tensor([4, 2, 5])
    own = windows.double()
    x = both.double()[:, :CHANNELS]
    expected = conv_step_(x, weight.double(), bias.double(), own, slots, silu=silu)
    arena = windows.clone().to(DEVICE)
    x = both.to(DEVICE)[:, :CHANNELS]
    given = (x, weight.to(DEVICE), bias.to(DEVICE), arena, slots.to(DEVICE))
    y = conv_step_triton_(*given, silu)
    assert worst(y[:2], expected[:2]) <= 1e-6
    assert not y[2, 4].isfinite()
    assert torch.equal(arena.cpu(), own.float())
    assert torch.equal(arena[5].cpu(), windows[5])


@pytest.mark.parametrize("rule", ["zoh", "bilinear"])
@pytest.mark.parametrize("with_dt", [False, True])
@pytest.mark.parametrize("rows", [3, 130])
@pytest.mark.usefixtures("poisoned")
def test_the_diagonal_step(rule: Discretization, with_dt, rows):
    channels, modes_number = (70, 32) if ON_GPU else (3, 5)
    shape = (channels, modes_number)
    log_decay, frequency = draw(*shape, seed=1), 60 * draw(*shape, seed=2)
    c_re, c_im = draw(*shape, seed=3), draw(*shape, seed=4)
    modes = Modes(draw(channels, seed=0) - 4, log_decay, frequency, c_re, c_im)
    x, skip, states = (
        draw(rows, channels, seed=5),
        draw(channels, seed=6),
        draw(rows + 3, *shape, 2, seed=7),
    )
    x[1, 0] = torch.nan
    slots = torch.randperm(rows, generator=torch.Generator().manual_seed(8)) + 2
    dt = 3 * torch.rand(rows, generator=torch.Generator().manual_seed(9)) if with_dt else None

    def run(step: Any, dtype: torch.dtype, device: str):
        arena = states.clone().to(device, dtype)
        own = Modes(*(t.to(device, dtype) for t in modes))
        time = None if dt is None else dt.to(device)
        tail = (skip.to(device, dtype), arena, slots.to(device), time)
        return step(x.to(device, dtype), own, rule, *tail).cpu(), arena.cpu()

    y, arena = run(diagonal_step_triton_, torch.float32, DEVICE)
    expected, own = run(diagonal_step_, torch.float64, "cpu")
    healthy = [row for row in range(rows) if row != 1]
    assert worst(y[healthy], expected[healthy]) <= 1e-5
    assert worst(arena[slots[healthy]], own[slots[healthy]]) <= 1e-5
    assert torch.equal(arena[[0, 1, -1]], states[[0, 1, -1]])
    assert torch.equal(arena[slots[1], 0], states[slots[1], 0])
    assert y[1, 0].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("length", [1, 8, 19])
@pytest.mark.usefixtures("poisoned")
def test_the_linear_scan(dtype, length):
    generator = torch.Generator().manual_seed(length)
    decay = 0.7 * torch.randn(2, length, 70, dtype=dtype, generator=generator)
    value = torch.randn(2, length, 70, dtype=dtype, generator=generator)
    initial = torch.randn(2, 70, dtype=dtype, generator=generator)
    found = scan_triton(decay.to(DEVICE), value.to(DEVICE), initial.to(DEVICE)).cpu()
    assert (found - linear_scan(decay, value, initial)).abs().max() < 5e-6


@pytest.mark.usefixtures("poisoned")
def test_the_token_shift():
    x, mix = 3 * draw(3, 2 * CHANNELS, seed=0) + 1, draw(2, CHANNELS, seed=1)
    weight, bias, shifts = (
        draw(CHANNELS, seed=2),
        draw(CHANNELS, seed=3),
        draw(6, CHANNELS, seed=4),
    )
    x[1, 0] = 1e30
    x[2, 4] = torch.nan
    slots = torch.tensor([4, 2, 5])
    given = (weight.double(), bias.double(), 1e-5, mix.double(), own := shifts.double(), slots)
    expected = shift_step_(x.double()[:, :CHANNELS], *given)
    arena = shifts.clone().to(DEVICE)
    moved = [t.to(DEVICE) for t in (weight, bias, mix, slots)]
    found = shift_step_triton_(
        x.to(DEVICE)[:, :CHANNELS], moved[0], moved[1], 1e-5, moved[2], arena, moved[3], BOUND
    )
    for a, b in zip(found, expected, strict=True):
        assert worst(a[..., :2, :], b[..., :2, :]) <= 1e-5
        assert not a[..., 2, :].isfinite().all()
    assert worst(arena, own) <= 1e-5
    assert torch.equal(arena[[0, 1, 3, 5]].cpu(), shifts[[0, 1, 3, 5]])
