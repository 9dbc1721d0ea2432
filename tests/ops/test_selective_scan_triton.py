"""The selective scan's kernels: interpreted, or on a GPU where there is one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.ops.kernels import DEVICE, ON_GPU, check_scan, draw, worst

pytest.importorskip("triton")

from kssm.ops.selective_scan import kernel_launch, selective_scan_torch, selective_step_
from kssm.ops.selective_scan.kernel_step import selective_step_triton_

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's NaNs

ROWS, CHANNELS, STATES = (3, 320, 16) if ON_GPU else (2, 19, 5)
LENGTHS = [1, 7, 63, 64, 65, 500] if ON_GPU else [1, 4, 9, 17]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks in a few tokens, where tokens are slow."""
    if not ON_GPU:
        monkeypatch.setattr(kernel_launch, "_CHUNK", 8)
        monkeypatch.setattr(kernel_launch, "_SUB", 4)


def problem(length: int, strength: float, channels: int = CHANNELS) -> list[Tensor]:
    step = strength * draw(ROWS, length, channels, seed=1).exp()
    step[0, ::3] = 0.0
    return [
        draw(ROWS, length, channels, seed=0),
        step,
        -draw(channels, STATES, seed=2).exp(),
        draw(ROWS, length, STATES, seed=3),
        draw(ROWS, length, STATES, seed=4),
        draw(ROWS, channels, STATES, seed=5),
    ]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("strength", [0.02, 3.0])
@pytest.mark.usefixtures("poisoned", "small_chunks")
def test_values_and_gradients(length, strength):
    inputs = problem(length, strength)
    check_scan(kernel_launch.selective_scan_triton, selective_scan_torch, inputs, 1e-5)


@pytest.mark.usefixtures("small_chunks")
def test_a_token_without_a_step_changes_no_bit():
    x, step, *rest, state = problem(9, 1.0)
    inputs = [t.to(DEVICE) for t in (x, torch.zeros_like(step), *rest, state)]
    _, end = kernel_launch.selective_scan_triton(*inputs)
    assert torch.equal(end, inputs[-1])


@pytest.mark.usefixtures("small_chunks")
def test_later_tokens_change_no_bit():
    x, *rest = (t.to(DEVICE) for t in problem(17, 1.0))
    y, _ = kernel_launch.selective_scan_triton(x, *rest)
    x[:, 10:] = torch.nan
    assert torch.equal(kernel_launch.selective_scan_triton(x, *rest)[0][:, :10], y[:, :10])


@pytest.mark.skipif(not ON_GPU, reason="needs more tokens than the interpreter can walk")
def test_a_long_sequence():
    inputs = [t[:1] if t.dim() == 3 else t for t in problem(5000, 0.02, channels=32)]
    check_scan(kernel_launch.selective_scan_triton, selective_scan_torch, inputs, 1e-5)


@pytest.mark.parametrize("with_dt", [False, True])
@pytest.mark.usefixtures("poisoned")
def test_the_step(with_dt):
    x, raw, gate = (draw(3, CHANNELS, seed=i) for i in range(3))
    bias, skip = draw(CHANNELS, seed=3), draw(CHANNELS, seed=4)
    low = draw(3, 4 + 2 * STATES, seed=5)
    a_log, states = draw(CHANNELS, STATES, seed=6), draw(6, CHANNELS, STATES, seed=7)
    slots, dt = torch.tensor([4, 2, 5]), torch.tensor([0.5, 1.0, 3.0]) if with_dt else None
    raw[0, 0] = 1e4
    x[2, 1] = torch.nan

    def run(step, dtype, device):
        arena = states.clone().to(device, dtype)
        given = [t.to(device, dtype) for t in (x, raw, bias, a_log)]
        b, c = low.to(device, dtype).split([4, STATES, STATES], dim=-1)[1:]
        tail = [t.to(device, dtype) for t in (skip, gate)]
        own_dt = None if dt is None else dt.to(device)
        y = step(*given, b, c, *tail, arena, slots.to(device), own_dt)
        return y.cpu(), arena.cpu()

    y, arena = run(selective_step_triton_, torch.float32, DEVICE)
    expected, own = run(selective_step_, torch.float64, "cpu")
    assert worst(y[:2], expected[:2]) <= 1e-5
    assert worst(arena[[2, 4]], own[[2, 4]]) <= 1e-5
    assert torch.equal(arena[[0, 1, 3]], states[[0, 1, 3]])
    assert torch.equal(arena[5, 1], states[5, 1])
    assert torch.isfinite(arena).all()
    assert y[2, 1].isnan()


def test_softplus_of_large_and_small_numbers():
    raw = torch.tensor([[-40.0, -1.0, 0.0, 1.0, 90.0]])
    ones, states = torch.ones(1, 5), torch.zeros(1, 5, 1)
    zero = torch.tensor([0], device=DEVICE)
    given = (ones, raw, torch.zeros(5), torch.full((5, 1), -60.0), ones[:, :1], ones[:, :1])
    given = [t.to(DEVICE) for t in (*given, torch.zeros(5), torch.full((1, 5), 1e4))]
    y = selective_step_triton_(*given, states.to(DEVICE), zero, None)
    assert worst(y.cpu() / 1e4, F.softplus(raw.double())) <= 1e-6
    assert abs(float(y[0, 0]) / 1e4 / float(torch.exp(torch.tensor(-40.0))) - 1) <= 1e-5
