"""Mamba-2's kernels: interpreted, or on a GPU where there is one."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from tests.ops.kernels import DEVICE, ON_GPU, check_scan, draw, worst

pytest.importorskip("triton")

from kssm.ops.ssd import ssd_scan_torch, ssd_step_
from kssm.ops.ssd.kernel import ssd_scan_triton
from kssm.ops.ssd.kernel_step import ssd_step_triton_

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's NaNs

ROWS, HEADS, SIZE, GROUPS, STATES = (3, 4, 64, 2, 64) if ON_GPU else (2, 2, 16, 1, 16)
LENGTHS = [1, 7, 63, 64, 65, 500] if ON_GPU else [1, 5, 40]


def problem(length: int, strength: float) -> list[Tensor]:
    step = strength * draw(ROWS, length, HEADS, seed=1).exp()
    step[0, ::3] = 0.0
    return [
        draw(ROWS, length, HEADS, SIZE, seed=0),
        step,
        -draw(HEADS, seed=2).exp(),
        draw(ROWS, length, GROUPS, STATES, seed=3),
        draw(ROWS, length, GROUPS, STATES, seed=4),
        draw(ROWS, HEADS, SIZE, STATES, seed=5),
    ]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("strength", [0.02, 3.0, 100.0])
@pytest.mark.usefixtures("poisoned")
def test_values_and_gradients(length, strength):
    check_scan(ssd_scan_triton, ssd_scan_torch, problem(length, strength), 1e-5)


@pytest.mark.parametrize("strength", [0.02, 3.0])
def test_products_of_16_bit_factors(strength):
    short = torch.bfloat16 if ON_GPU else torch.float16  # the interpreter multiplies no bf16
    scan = partial(ssd_scan_triton, dtype=short)
    check_scan(scan, ssd_scan_torch, problem(LENGTHS[-1], strength), 5e-2)


@pytest.mark.skipif(not ON_GPU, reason="needs more tokens than the interpreter can walk")
def test_a_long_sequence():
    check_scan(ssd_scan_triton, ssd_scan_torch, problem(3000, 0.02), 1e-5)


def test_a_token_without_a_step_changes_no_bit():
    x, step, *rest, state = problem(9, 1.0)
    inputs = [t.to(DEVICE) for t in (x, torch.zeros_like(step), *rest, state)]
    assert torch.equal(ssd_scan_triton(*inputs)[1], inputs[-1])


def test_later_tokens_change_no_bit():
    x, *rest = (t.to(DEVICE) for t in problem(9, 1.0))
    y, _ = ssd_scan_triton(x, *rest)
    x[:, 6:] = 1e3
    assert torch.equal(ssd_scan_triton(x, *rest)[0][:, :6], y[:, :6])


@pytest.mark.parametrize("with_dt", [False, True])
@pytest.mark.usefixtures("poisoned")
def test_the_step(with_dt):
    width, shared = HEADS * SIZE, GROUPS * STATES
    filtered, gate = draw(3, width + 2 * shared, seed=0), draw(3, HEADS, SIZE, seed=1)
    raw, states = draw(3, HEADS, seed=2), draw(6, HEADS, SIZE, STATES, seed=3)
    bias, a_log, skip = (draw(HEADS, seed=i) for i in (4, 5, 6))
    slots, dt = torch.tensor([4, 2, 5]), torch.tensor([0.5, 1.0, 3.0]) if with_dt else None
    filtered[2, 0] = torch.inf

    def run(step, dtype, device):
        arena = states.clone().to(device, dtype)
        x, b, c = filtered.to(device, dtype).split([width, shared, shared], dim=-1)
        x, shape = x.unflatten(-1, (HEADS, SIZE)), (GROUPS, STATES)
        given = [t.to(device, dtype) for t in (raw, bias, a_log)]
        tail = [t.to(device, dtype) for t in (skip, gate)]
        own_dt = None if dt is None else dt.to(device)
        b, c = b.unflatten(-1, shape), c.unflatten(-1, shape)
        y = step(x, *given, b, c, *tail, arena, slots.to(device), own_dt)
        return y.cpu(), arena.cpu()

    y, arena = run(ssd_step_triton_, torch.float32, DEVICE)
    expected, own = run(ssd_step_, torch.float64, "cpu")
    assert worst(y[:2], expected[:2]) <= 1e-5
    assert worst(arena[[2, 4]], own[[2, 4]]) <= 1e-5
    assert torch.equal(arena[[0, 1, 3]], states[[0, 1, 3]])
    assert torch.isfinite(arena).all()
    assert not y[2, 0, 0].isfinite()
