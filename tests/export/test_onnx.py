"""The exported step, run by onnxruntime, against the step itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kssm.cli import main
from kssm.errors import InvalidInputError
from kssm.export import Layout, export_onnx
from kssm.export import onnx as export_module
from kssm.export.decompositions import asinh, erfc, sinh
from kssm.export.steps import ForecasterStep
from kssm.forecast import SignalForecaster
from kssm.forecast.distribution import LEVELS
from kssm.forecast.testing import tiny_forecaster
from kssm.models import KSSMConfig, SequenceModel, build
from kssm.models.mamba import MambaConfig
from kssm.models.mamba2 import Mamba2Config
from kssm.models.rwkv6 import RWKV6Config
from kssm.models.s4d import S4DConfig
from kssm.models.stack import StackConfig
from kssm.models.transformer import TransformerConfig

for package in ("onnx", "onnxscript"):
    pytest.importorskip(package)
runtime = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.slow

WIDTH, ROWS = 12, 4
CONFIGS: dict[str, StackConfig] = {
    "kssm": KSSMConfig(WIDTH, 1, d_inner=16, d_mlp=8, rank=3, group_size=8),
    "mamba": MambaConfig(WIDTH, 1, d_inner=16, d_state=5, rank=3),
    "mamba2": Mamba2Config(WIDTH, 1, d_inner=16, head_dim=8, d_state=5),
    "rwkv6": RWKV6Config(WIDTH, 1, head_size=6, d_ffn=16, mix_rank=3, decay_rank=3),
    "s4d": S4DConfig(WIDTH, 1, d_state=5, d_mlp=8),
    "transformer": TransformerConfig(WIDTH, 1, 2, 1, head_size=4, d_mlp=8, window=5),
}


class Runner:
    """An exported step that remembers the state of its rows."""

    def __init__(self, path: Path, layout: Layout, rows: int) -> None:
        self.session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.names = [entry.name for entry in self.session.get_inputs()]
        self.state = [
            np.zeros((rows, packed.size), dtype=str(packed.dtype).removeprefix("torch."))
            for packed in layout.tensors
        ]

    def __call__(self, *inputs: Tensor) -> list[Any]:
        given = [*(entry.numpy() for entry in inputs), *self.state]
        results = self.session.run(None, dict(zip(self.names, given, strict=True)))
        first = len(results) - len(self.state)
        self.state = results[first:]
        return results[:first]


def worst(actual: Any, expected: Tensor) -> float:
    """Largest error, as a share of the largest expected number."""
    known = expected.numpy()
    assert np.array_equal(np.isnan(actual), np.isnan(known))
    if np.isnan(known).all():
        return 0.0
    return float(np.nanmax(np.abs(actual - known)) / max(float(np.nanmax(np.abs(known))), 1e-30))


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_model_gives_the_same_numbers(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: SequenceModel = build(name, CONFIGS[name]).eval()
    path = tmp_path / "model.onnx"
    export_onnx(model, path)
    layout = Layout.of(model.state_spec())
    run = Runner(path, layout, ROWS)
    arena, slots = model.initial_state(ROWS + 1), torch.arange(1, ROWS + 1)
    generator = torch.Generator().manual_seed(1)
    for t in range(12):
        x = torch.randn(ROWS, WIDTH, generator=generator)
        dt = 2 * torch.rand(ROWS, generator=generator)
        dt[t % ROWS] = 0.0
        (y,) = run(x, dt)
        assert worst(y, model.step_(x, arena, slots, dt)) <= 1e-5
    state = layout.pack({key: entry[slots] for key, entry in arena.items()})
    assert all(worst(a, b) <= 1e-5 for a, b in zip(run.state, state, strict=True))


@pytest.fixture(scope="module")
def forecaster() -> SignalForecaster:
    config = KSSMConfig(WIDTH, 1, d_inner=16, d_mlp=8, rank=3, group_size=8)
    return tiny_forecaster(backbone=config)


@pytest.fixture(scope="module")
def exported(forecaster: SignalForecaster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "forecaster.onnx"
    export_onnx(forecaster, path)
    return path


def test_a_forecaster_gives_the_same_numbers(forecaster: SignalForecaster, exported: Path) -> None:
    layout = Layout.of(forecaster.state_spec())
    run = Runner(exported, layout, ROWS)
    arena, slots = forecaster.initial_state(ROWS + 1), torch.arange(1, ROWS + 1)
    generator = torch.Generator().manual_seed(1)
    level = torch.tensor([0.0, 1e9, -3.0, 1e-6], dtype=torch.float64)
    scale = torch.tensor([1.0, 1e-2, 1e4, 1e-9], dtype=torch.float64)
    for t in range(40):
        values = level + scale * torch.randn(ROWS, generator=generator, dtype=torch.float64)
        if t % 3 == 0 or t < 2:
            values[t % ROWS] = torch.nan
        if t == 20:
            values[2] = 1e30
        dt = 0.5 + torch.rand(ROWS, generator=generator, dtype=torch.float64)
        quantiles, tail, healthy = run(values, dt)
        expected = forecaster.step_torch_(values, arena, slots, dt)
        state = {key: entry[slots] for key, entry in arena.items()}
        own = forecaster.forecast(state, forecaster.config.head_horizon, LEVELS)
        assert all(worst(quantiles[row], own[row]) <= 1e-5 for row in range(ROWS))
        assert worst(tail, expected.tail) <= 1e-5
        assert healthy.all()
        state_64 = layout.pack(state)[0]
        assert worst(run.state[0], state_64) <= 1e-13


def test_the_file_says_where_the_state_lies(forecaster: SignalForecaster, exported: Path) -> None:
    session = runtime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
    found = session.get_modelmeta().custom_metadata_map
    assert found["kssm.fingerprint"] == forecaster.fingerprint
    places = json.loads(found["kssm.layout"])
    assert places["state_float64"] == [["scaler", [7]]]
    assert places["state_float32"][0][0] == "forecast"
    assert {entry.shape[0] for entry in session.get_inputs()} == {"rows"}


def test_packing_is_undone_by_unpacking(forecaster: SignalForecaster) -> None:
    layout = Layout.of(forecaster.state_spec())
    state = {key: torch.randn_like(entry) for key, entry in forecaster.initial_state(3).items()}
    packed = layout.pack(state)
    assert [tensor.shape[1] for tensor in packed] == [tensor.size for tensor in layout.tensors]
    back = layout.unpack(packed)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    back["scaler"].zero_()
    assert not packed[0].eq(0).any()


def test_thinned_copies_stay_behind() -> None:
    thinned, plain = tiny_forecaster(thinning=(4, 16)), tiny_forecaster()
    step, own = ForecasterStep(thinned.eval()), ForecasterStep(plain.eval())
    assert step.layout.tensors == own.layout.tensors
    values = torch.tensor([1.0, 2.5], dtype=torch.float64)
    state = own.layout.pack(plain.initial_state(2))
    results = [s(values, torch.ones_like(values), *state) for s in (step, own)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_complex_arithmetic_is_refused(tmp_path: Path) -> None:
    model = build("kssm_matrix", "tiny")
    with pytest.raises(InvalidInputError) as error:
        export_onnx(model, tmp_path / "model.onnx")
    assert error.value.code == "export_unsupported"


def test_without_the_packages_it_says_what_to_install(
    forecaster: SignalForecaster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidInputError) as error:
        export_onnx(forecaster, tmp_path / "model.onnx")
    assert error.value.code == "export_unavailable"


def test_an_unknown_checkpoint_ends_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        main(["export", "no-such-model", str(tmp_path / "model.onnx")])
    assert error.value.code == 1
    assert "model_not_found" in capsys.readouterr().err


def test_functions_that_the_runtime_lacks() -> None:
    x = torch.linspace(-9.0, 9.0, 2001, dtype=torch.float64)
    torch.testing.assert_close(erfc(x), torch.special.erfc(x), rtol=1e-11, atol=0.0)
    large = torch.logspace(-12, 60, 2001, dtype=torch.float64)
    for own, known in ((asinh, torch.asinh), (sinh, torch.sinh)):
        points = large if own is asinh else large[large < 100]
        for signed in (points, -points, torch.zeros(1, dtype=torch.float64)):
            torch.testing.assert_close(own(signed), known(signed), rtol=1e-12, atol=0.0)
