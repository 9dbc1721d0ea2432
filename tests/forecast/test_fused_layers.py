"""The kernel of all layers, run on the CPU, against the torch step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kssm.forecast import ForecasterConfig, SignalForecaster, pretrained
from kssm.forecast.fused.weights import Sizes, Weights
from kssm.forecast.resolutions import at_one_resolution
from kssm.models import KSSMConfig, State
from tests.ops.cuda_on_cpu import Emulator

pytest.importorskip("triton")

from kssm.forecast.fused import kernel_layers
from kssm.forecast.fused.kernel_call import Call
from kssm.forecast.fused.kernel_layers import fits, pieces_of, run_layers

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU for it")

ROWS = 70


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return Emulator(tmp_path_factory.mktemp("cuda"), Path(__file__).with_name("layers_on_cpu.cpp"))


@pytest.fixture(autouse=True)
def on_cpu(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_layers, "program", emulator.program)


@pytest.fixture(scope="module")
def model() -> SignalForecaster:
    """Two layers as wide as the base model's, half as many channels, weights that fit fp16."""
    torch.manual_seed(0)
    backbone = KSSMConfig(d_model=256, n_layers=2, d_inner=128, d_mlp=128, rank=32, group_size=64)
    config = ForecasterConfig(backbone, head_horizon=16, head_hidden=64)
    return SignalForecaster(config).eval().half().float()


class Layers:
    """The kernel over an arena of its own."""

    def __init__(self, model: SignalForecaster, arena: State) -> None:
        sizes = Sizes.of(model)
        assert sizes is not None
        assert fits(sizes, torch.float16)
        weights = Weights.pack(model, sizes, torch.float16)
        self.weights = replace(weights, pieces=pieces_of(weights))
        self.arena = {name: entry.clone() for name, entry in arena.items()}

    def step_(self, x: Tensor, slots: Tensor, dt: Tensor) -> Tensor:
        """The head's hidden units [rows, HEAD] of embedded samples [rows, 256]."""
        rows = len(x)
        room = (rows + 63) // 64 * 64
        embedded = torch.full((room, 256), torch.nan)
        embedded[:rows] = x
        hidden = torch.full((room, self.weights.sizes.head_hidden), torch.nan, dtype=torch.half)
        table = torch.tensor([entry.data_ptr() for entry in self.arena.values()])
        call = Call(dt, dt, slots, table, dt, slots > 0)
        run_layers(self.weights, embedded, hidden, call)
        return hidden[:rows].float()


def problem(model: SignalForecaster, rows: int = ROWS) -> tuple[State, Tensor, Tensor, Tensor]:
    """(an arena in use, embedded samples, slots, steps); every fifth row is padding."""
    generator = torch.Generator().manual_seed(1)
    arena = model.initial_state(rows + 1)
    for name, entry in arena.items():
        if name.startswith("layers."):
            entry[1:] = 0.3 * torch.randn(entry[1:].shape, generator=generator)
    slots = torch.randperm(rows, generator=generator) + 1
    slots[4::5] = -1
    x = torch.randn(rows, 256, generator=generator)
    dt = torch.rand(rows, generator=generator, dtype=torch.float64) * 3 + 0.3
    return arena, x, slots, dt


def reference(
    model: SignalForecaster, arena: State, x: Tensor, slots: Tensor, dt: Tensor
) -> tuple[State, Tensor]:
    """The arena after torch's step of the backbone, and the head's hidden units."""
    after = {name: entry.clone() for name, entry in arena.items()}
    y = model.backbone.step_(x, after, slots, dt)
    return after, torch.nn.functional.silu(model.head.hidden(y))


def worst(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("rows", [ROWS, 200])
@torch.inference_mode()
def test_layers_equal_those_of_torch(model: SignalForecaster, rows: int) -> None:
    arena, x, slots, dt = problem(model, rows)
    layers = Layers(model, arena)
    after, expected = reference(model, arena, x, slots, dt)
    hidden = layers.step_(x, slots, dt)
    live = slots > 0
    assert 1e-6 < worst(hidden[live], expected[live]) < 3e-3
    idle = [slot for slot in range(rows + 1) if slot not in slots.tolist()]
    for name, entry in layers.arena.items():
        assert torch.equal(entry[idle], arena[name][idle])
        if name.startswith("layers."):
            assert worst(entry[1:], after[name][1:]) < 2e-3
            assert worst(entry[slots[live]], arena[name][slots[live]]) > 0.1
        else:
            assert torch.equal(entry, arena[name])


@torch.inference_mode()
def test_rows_do_not_depend_on_their_neighbours(model: SignalForecaster) -> None:
    arena, x, slots, dt = problem(model)
    together, alone = (Layers(model, arena) for _ in range(2))
    together.step_(x, slots, dt)
    some = torch.tensor([66, 0, 13, 4, 31, 2])
    alone.step_(x[some], slots[some], dt[some])
    taken = slots[some][slots[some] > 0]
    for name, entry in together.arena.items():
        assert torch.equal(entry[taken], alone.arena[name][taken])


@torch.inference_mode()
def test_a_sick_row_touches_nobody(model: SignalForecaster) -> None:
    arena, x, slots, dt = problem(model)
    well, sick = Layers(model, arena), Layers(model, arena)
    slot = int(slots[2])
    sick.arena["layers.0.state"][slot] = torch.nan
    expected, hidden = well.step_(x, slots, dt), sick.step_(x, slots, dt)
    assert not hidden[2].isfinite().any()
    others = [row for row in range(ROWS) if row != 2 and int(slots[row]) > 0]
    assert torch.equal(hidden[others], expected[others])
    for name in ("layers.0.window", "layers.1.window", "layers.1.state"):
        assert sick.arena[name][slot].isfinite().all()
    for name, entry in sick.arena.items():
        healthy = [row for row in range(ROWS + 1) if row != slot]
        assert torch.equal(entry[healthy], well.arena[name][healthy])


def test_what_the_kernel_has_no_form_for() -> None:
    for name in ("kssm-signal-base", "kssm-signal-small"):
        sizes = Sizes.of(at_one_resolution(pretrained.load(name)))
        assert sizes is not None
        assert fits(sizes, torch.float16)
        assert not fits(sizes, torch.float32)
    narrow = KSSMConfig(d_model=64, n_layers=1, d_inner=64, d_mlp=64, rank=8, group_size=32)
    sizes = Sizes.of(SignalForecaster(ForecasterConfig(narrow, head_horizon=16, head_hidden=64)))
    assert sizes is not None
    assert not fits(sizes, torch.float16)
