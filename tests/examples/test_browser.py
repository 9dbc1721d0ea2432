"""The browser example's forecaster, run in Node, against the forecaster itself."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from kssm.export import export_onnx
from kssm.forecast.distribution import LEVELS
from kssm.forecast.testing import tiny_forecaster
from kssm.models import KSSMConfig

EXAMPLE = Path(__file__).parents[2] / "examples" / "browser"

for package in ("onnx", "onnxscript"):
    pytest.importorskip(package)
if shutil.which("node") is None or not (EXAMPLE / "node_modules" / "onnxruntime-web").is_dir():
    pytest.skip("needs Node and `npm install` in examples/browser", allow_module_level=True)

pytestmark = pytest.mark.slow


def test_the_page_forecasts_what_the_library_does(tmp_path: Path) -> None:
    config = KSSMConfig(12, 1, d_inner=16, d_mlp=8, rank=3, group_size=8)
    model = tiny_forecaster(backbone=config)
    path = tmp_path / "forecaster.onnx"
    export_onnx(model, path)
    values = [math.sin(t / 4) * 50 + 1e3 for t in range(30)]
    values[3] = math.nan
    given = json.dumps([None if math.isnan(value) else value for value in values])
    command = ["node", str(EXAMPLE / "check.mjs"), str(path)]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
    answers = json.loads(done.stdout)
    arena, slots = model.initial_state(2), torch.tensor([1])
    for value, answer in zip(values, answers, strict=True):
        expected = model.step_torch_(torch.tensor([value], dtype=torch.float64), arena, slots)
        state = {name: entry[slots] for name, entry in arena.items()}
        quantiles = model.forecast(state, model.config.head_horizon, LEVELS).flatten()
        found = torch.tensor(answer["quantiles"], dtype=torch.float64)
        torch.testing.assert_close(found, quantiles, rtol=1e-5, atol=0.0)
        tail = math.nan if answer["tail"] is None else answer["tail"]
        assert tail == pytest.approx(float(expected.tail), rel=1e-4, nan_ok=True)
