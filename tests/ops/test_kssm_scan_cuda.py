"""walk.cu and tile.cu against float64: on a GPU, or their sources compiled for the CPU."""

from __future__ import annotations

import importlib
from dataclasses import replace
from functools import partial

import pytest
import torch

from kssm.ops.kssm_scan import kssm_scan
from tests.ops.cuda_on_cpu import Emulator
from tests.ops.problems import (
    DEVICE,
    Problem,
    check_missing_number_stays,
    make_problem,
    named,
    worst,
)
from tests.ops.test_kssm_scan_packed import alone, packed
from tests.ops.test_kssm_scan_packed import gradients as packed_gradients

pytest.importorskip("triton")

from kssm.ops.kssm_scan.kernel_choice import BACKWARD
from kssm.ops.kssm_scan.kernel_cut import RingTuning, TileTuning

kernel = importlib.import_module("kssm.ops.kssm_scan.kernel")
cuda_scan = importlib.import_module("kssm.ops.kssm_scan.cuda_scan")
ON_GPU = DEVICE == "cuda"
TILES = TileTuning(warps=2, run=4, every=3)
TUNINGS = {
    "ring": RingTuning(3, enough=0),
    "chunks": RingTuning(3, enough=10**6, wanted=10**6, shortest=8),
    "tiles": TILES,
    "chain": replace(TILES, every=1),
}
if ON_GPU:
    TUNINGS["wide"] = TileTuning(8, 16, every=8)
    TUNINGS["longer"] = RingTuning(6)
ALL = {"token_dt": True, "initial": True, "lengths": True}


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return Emulator(tmp_path_factory.mktemp("cuda"))


@pytest.fixture(autouse=True)
def somewhere(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: on the CPU."""
    if not ON_GPU:
        monkeypatch.setattr(cuda_scan, "program", emulator.program)
        monkeypatch.setattr(cuda_scan, "_usable", lambda _: True)


@pytest.fixture(params=list(TUNINGS))
def tuned(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Run ``scan_triton`` with each tuning."""
    tuning = TUNINGS[request.param]
    tunings = (tuning, tuning if isinstance(tuning, RingTuning) else BACKWARD)
    monkeypatch.setattr(kernel, "scan_triton", partial(kernel.scan_triton, tuning=tunings))


def check(problem: Problem, dtype: torch.dtype) -> None:
    """Values against the float64 reference."""
    expected = problem.run("chunked")
    for found, value in zip(problem.to(dtype, DEVICE).run("triton"), expected, strict=True):
        assert worst(found, value) < 5e-3


@pytest.mark.parametrize("tokens", [1, 8, 61, 500] if ON_GPU else [1, 8, 61])
@pytest.mark.usefixtures("poisoned", "tuned")
def test_all_options_at_every_length(tokens):
    check(make_problem(3, tokens, 128, 2, **ALL), torch.bfloat16)


@pytest.mark.parametrize("options", [{}, {"token_dt": True}, {"lengths": True}, {"initial": True}])
@pytest.mark.usefixtures("poisoned", "tuned")
def test_each_option_alone(options):
    check(make_problem(2, 33, 128, 1, **options), torch.bfloat16)


@pytest.mark.parametrize(
    ("tokens", "dtype"), [(13, torch.bfloat16), (13, torch.float16), (70, torch.bfloat16)]
)
@pytest.mark.usefixtures("poisoned", "tuned")
def test_gradients(tokens, dtype):
    problem = make_problem(3, tokens, 64, 1, **ALL)
    expected = problem.gradients("reference")
    found = problem.to(dtype, DEVICE).gradients("triton")
    for name, value in expected.items():
        assert worst(found[name], value) < 1e-2, name


@pytest.mark.usefixtures("poisoned", "tuned")
def test_packed_sequences():
    problem, offsets = packed([3, 0, 69, 1, 8], channels=64, groups=1)
    expected = alone(problem, offsets)
    found = packed_gradients(problem.to(torch.bfloat16, DEVICE), offsets.to(DEVICE), "triton")
    for name, value in found.items():
        assert worst(value, expected[name]) < 1e-2, name


@pytest.mark.usefixtures("poisoned", "tuned")
def test_held_tokens_leave_the_state_bit_for_bit():
    problem = make_problem(2, 13, 64, 1, initial=True).to(torch.bfloat16, DEVICE)
    inputs = [torch.full_like(t, float("nan")) for t in problem.inputs]
    for options in (
        {"token_dt": torch.zeros(2, 13, device=DEVICE)},
        {"lengths": torch.zeros(2, dtype=torch.int32, device=DEVICE)},
    ):
        with torch.no_grad():
            y, final = kssm_scan(
                **named(inputs),
                parameters=problem.parameters,
                initial_state=problem.initial_state,
                backend="triton",
                **options,
            )
        assert torch.equal(final, problem.initial_state)
        first = torch.zeros_like(y[:, :1]) if "lengths" in options else y[:, :1]
        assert torch.equal(y, first.expand_as(y))


@pytest.mark.usefixtures("tuned")
def test_a_missing_number_stays_in_its_row_and_channel():
    check_missing_number_stays(make_problem(2, 21, 64, 1).to(torch.bfloat16, DEVICE))


@pytest.mark.parametrize("shift", [0, 1, 8])
@pytest.mark.usefixtures("tuned")
def test_slices_of_a_projection(shift):
    problem = make_problem(2, 9, 64, 1).to(torch.bfloat16, DEVICE)
    joined = torch.cat([problem.inputs[0][..., :shift], *problem.inputs], dim=-1)
    pieces = joined[..., shift:].split([t.shape[-1] for t in problem.inputs], dim=-1)
    found = replace(problem, inputs=pieces).run("triton")
    for value, expected in zip(found, problem.run("triton"), strict=True):
        assert torch.equal(value, expected)


@pytest.mark.usefixtures("tuned")
def test_runs_are_reproducible_bit_for_bit():
    problem = make_problem(2, 300 if ON_GPU else 30, 128, 1, **ALL).to(torch.bfloat16, DEVICE)
    first, second = problem.run("triton"), problem.run("triton")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_what_they_cannot_do_is_done_in_triton(monkeypatch):
    monkeypatch.setattr(kernel, "forward_by_cuda", pytest.fail)
    tunings = (TileTuning(), BACKWARD)
    monkeypatch.setattr(kernel, "scan_triton", partial(kernel.scan_triton, tuning=tunings))
    check(make_problem(2, 9, 96, 1), torch.bfloat16)  # 96 is not a multiple of 64
    check(make_problem(2, 9, 64, 1), torch.float32)
