"""``SignalForecaster`` on a GPU: its steps go through the fused kernels."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from kssm.forecast import SignalForecaster, pretrained
from kssm.forecast.resolutions import at_one_resolution
from kssm.forecast.testing import tiny_forecaster
from kssm.models import State

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def fed(model: SignalForecaster, rows: int) -> tuple[State, State, Tensor]:
    """Two equal arenas whose rows have seen 40 samples, read on the CPU, and one more sample."""
    generator = torch.Generator().manual_seed(rows)
    values = torch.randn(min(rows, 300), 41, generator=generator, dtype=torch.float64).cumsum(1)
    reader = copy.deepcopy(model).cpu()
    state = reader.prefill(values[:, :40], reader.initial_state(len(values))).state
    which = torch.arange(rows) % len(values)
    padded = {
        name: torch.cat([torch.zeros_like(entry[:1]), entry[which]]).cuda()
        for name, entry in state.items()
    }
    last = values[which, 40] + torch.randn(rows, generator=generator, dtype=torch.float64)
    return padded, {name: entry.clone() for name, entry in padded.items()}, last.cuda()


@pytest.mark.parametrize("rows", [1, 40, 300, 17000])
@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("tiny", 1e-5), ("kssm-signal-base", 3e-3), ("kssm-signal-small", 3e-3)],
)
@torch.inference_mode()
def test_steps_equal_those_of_torch(name: str, tolerance: float, rows: int) -> None:
    tiny = name == "tiny"
    model = tiny_forecaster().cuda() if tiny else at_one_resolution(pretrained.load(name, "cuda"))
    assert model.step_weights is not None
    mine, reference, values = fed(model, rows)
    slots = torch.randperm(rows).cuda() + 1
    slots[rows // 2 + 1 :: 5] = -1
    for dt in (None, torch.full_like(values, 1.5)):
        found = model.step_(values, mine, slots, dt)
        expected = model.step_torch_(values, reference, slots, dt)
        assert found.healthy.all()
        live = slots > 0
        torch.testing.assert_close(found.tail[live], expected.tail[live], rtol=0.05, atol=tolerance)
    for entry, wanted in ((mine[key][1:], reference[key][1:]) for key in mine):
        assert float((entry - wanted).abs().max() / wanted.abs().max()) < tolerance


@pytest.mark.parametrize("rows", [3000, 5000, 33000])
@torch.inference_mode()
def test_rows_do_not_depend_on_their_neighbours(rows: int) -> None:
    """Up to 4,096 rows, beyond, and where two halves take turns."""
    model = at_one_resolution(pretrained.load("kssm-signal-base", "cuda"))
    mine, reference, values = fed(model, rows)
    again = {name: entry.clone() for name, entry in mine.items()}
    slots = torch.randperm(rows).cuda() + 1
    model.step_(values, mine, slots)
    model.step_torch_(values, reference, slots)
    for key in mine:
        difference = (mine[key][1:] - reference[key][1:]).abs().max()
        assert float(difference / reference[key][1:].abs().max()) < 3e-3
    some = torch.randperm(rows)[: rows - 137].cuda()
    model.step_(values[some], again, slots[some])
    for key in mine:
        assert torch.equal(again[key][slots[some]], mine[key][slots[some]])


@torch.inference_mode()
def test_forecasts_equal_those_of_torch() -> None:
    model = tiny_forecaster().cuda()
    state, _, _ = fed(model, 3)
    on_cpu = {key: entry.cpu() for key, entry in state.items()}
    for horizon in (1, 16, 20):
        found = model.forecast(state, horizon, (0.05, 0.5, 0.9))
        expected = tiny_forecaster().forecast(on_cpu, horizon, (0.05, 0.5, 0.9))
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5, equal_nan=True)


@torch.inference_mode()
def test_new_weights_are_noticed() -> None:
    model = tiny_forecaster().cuda()
    mine, reference, values = fed(model, 4)
    slots = torch.arange(1, 5).cuda()
    twin = copy.deepcopy(mine)
    model.step_(values, mine, slots)
    model.load_state_dict(tiny_forecaster(seed=5).state_dict())
    model.step_(values, twin, slots)
    model.step_torch_(values, reference, slots)
    torch.testing.assert_close(twin["forecast"], reference["forecast"], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(mine["forecast"], twin["forecast"], rtol=1e-2)
