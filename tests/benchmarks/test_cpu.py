"""`python -m benchmarks.cpu`, and that what it compares computes the same."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from torch.nn import functional as F

from benchmarks import cpu, cpu_candidates, cpu_prefill, cpu_resolutions, cpu_sizes
from kssm.forecast.native import library
from kssm.forecast.testing import tiny_forecaster


@pytest.mark.skipif(library.load() is None, reason="no compiled step on this machine")
def test_ends_with_a_line_of_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_model", lambda name, weights: tiny_forecaster())
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(cpu_sizes, "SIZES", {"1M": tiny_forecaster().config})
    cpu.main(["--sizes", "1M", "--batches", "1", "3", "--prompts", "2x5", "--seconds", "0"])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["benchmark"] == "cpu"
    assert [step["rows"] for step in line["steps"]] == [1, 3]
    for size in line["sizes"]:
        limit = max(size["read"], size["compute"])
        assert size["of_limit"] == pytest.approx(limit / size["step"], abs=0.01)
    whole, stored, half, brain, whole_numbers = line["sizes"]
    assert stored["megabytes"] == half["megabytes"] == brain["megabytes"] < whole["megabytes"]
    assert whole_numbers["megabytes"] < half["megabytes"]
    (prefill,) = line["prefill"]
    assert (prefill["rows"], prefill["tokens"]) == (2, 5)
    assert prefill["speedup"] == pytest.approx(prefill["native"] / prefill["torch"], rel=0.01)
    assert 0 < prefill["of_peak"] < 1
    for step in line["steps"]:
        assert step["speedup"] == pytest.approx(step["torch"] / step["native"], rel=0.01)
        assert step["of_limit"] == pytest.approx(step["read"] / step["native"], abs=0.01)


@pytest.mark.skipif(library.load() is None, reason="no compiled step on this machine")
def test_several_resolutions_are_compared_with_one(capsys: pytest.CaptureFixture[str]) -> None:
    with torch.inference_mode():
        costs = cpu_resolutions.measure(tiny_forecaster(thinning=(4,)), [1, 3], 0.0)
    cpu_resolutions.show(costs)
    names = [f"step of {rows}, {kind}" for rows in (1, 3) for kind in ("median", "mean")]
    assert [cost.action for cost in costs] == [*names, "forecast 24 ahead", "prompt of 512"]
    assert all(min(cost.single, cost.whole, cost.apart) > 0 for cost in costs)
    assert costs[0].ratio == costs[0].whole / costs[0].single
    assert costs[0].ratio_apart == costs[0].apart / costs[0].single
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(costs)
    assert cpu_resolutions.measure(tiny_forecaster(), [1], 0.0) == []


def test_counts_the_products_of_a_sample() -> None:
    layer = 32 * 64 + 32 * (3 * 4 + 2 * 2) + 3 * 4 * 32 + 32 * 32 + 32 * 64 + 32 * 32
    ends = 9 * 32 + 32 * 32 + 32 * 40
    assert cpu_prefill.flops(tiny_forecaster()) == 2 * (2 * layer + ends)


@pytest.mark.parametrize("make", [cpu_candidates.LeanStep, cpu_candidates.numba_step])
@torch.inference_mode()
def test_the_candidates_compute_the_step(make) -> None:
    if make is cpu_candidates.numba_step and not importlib.util.find_spec("numba"):
        pytest.skip("numba is not installed")
    model = tiny_forecaster()
    step = make(model)
    arena, slots = model.initial_state(2), torch.tensor([1])
    for features in torch.randn(6, 1, 9, generator=torch.Generator().manual_seed(0)):
        hidden = model.backbone.step_(model.embed(features), arena, slots)
        raw = F.linear(F.silu(model.head.hidden(hidden)), model.head.out.weight, model.head.bias)
        actual = torch.as_tensor(step(features)).reshape(1, -1)
        torch.testing.assert_close(actual, raw, rtol=1e-4, atol=1e-5)
