"""Forecasts read off an arena on a GPU: the CPU's numbers, in one launch, without a wait."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from kssm.forecast import SignalForecaster, pretrained
from kssm.forecast.resolutions import at_one_resolution
from tests.forecast.reading import random_arena

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
THREE = (0.1, 0.5, 0.9)
MANY = tuple(i / 20 for i in range(1, 20))


def shipped(resolutions: int) -> SignalForecaster:
    model = pretrained.load("kssm-signal-base", "cuda")
    assert len(model.config.thinning) == 2
    return model if resolutions == 3 else at_one_resolution(model)


@pytest.mark.parametrize(
    ("rows", "horizon", "levels"), [(1, 64, MANY), (999, 1, THREE), (4097, 24, THREE)]
)
@pytest.mark.parametrize("resolutions", [1, 3])
@torch.inference_mode()
def test_forecasts_are_those_of_a_cpu(
    resolutions: int, rows: int, horizon: int, levels: tuple[float, ...]
) -> None:
    model = shipped(resolutions)
    arena = random_arena(model, rows + 3, seed=rows)
    slots = torch.randperm(rows, generator=torch.Generator().manual_seed(0)) + 3
    slots[1::7] = -1
    live = slots >= 0
    here = copy.deepcopy(model).cpu()
    expected = here.forecast({n: entry[slots[live]] for n, entry in arena.items()}, horizon, levels)
    there = {name: entry.cuda() for name, entry in arena.items()}
    read = model.forecast_rows(there, slots.cuda(), horizon, levels)
    assert read is not None
    found = read.cpu()[live]
    assert found.isfinite().all()
    assert (found.diff(dim=-1) >= 0).all()
    largest = expected.abs().amax((1, 2), keepdim=True)
    assert ((found - expected).abs() <= 1e-11 * largest).all()


@pytest.mark.parametrize("resolutions", [1, 3])
@torch.inference_mode()
def test_reading_is_one_kernel_and_waits_for_nothing(resolutions: int) -> None:
    model = shipped(resolutions)
    arena = random_arena(model, 65, device="cuda")
    slots = torch.arange(1, 65, device="cuda")
    model.forecast_rows(arena, slots, 24, THREE)  # compiles, and copies the levels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.forecast_rows(arena, slots, 24, THREE)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        model.forecast_rows(arena, slots, 24, THREE)
        torch.cuda.synchronize()
    on_device = [e for e in profiler.key_averages() if e.device_type.name == "CUDA"]
    assert [e.key for e in on_device if "kernel" in e.key.lower()] == ["read_kernel"]
