"""The Triton scan against the float64 reference: interpreted, or on a GPU where there is one.

The sizes grow on a GPU; everything else is the same. The tunings force what small problems would
not reach by themselves: several time chunks, groups that a block does not fill.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.ops.problems import (
    DEVICE,
    Problem,
    check_missing_number_stays,
    make_problem,
    named,
    worst,
)

pytest.importorskip("triton")

from kssm.ops.kssm_scan import kernel, kssm_scan
from kssm.ops.kssm_scan.kernel_choice import BACKWARD, FORWARD
from kssm.ops.kssm_scan.kernel_cut import Cut, Tuning

ON_GPU = DEVICE == "cuda"
LENGTHS = [1, 2, 7, 63, 500] if ON_GPU else [1, 7, 13]
SHAPE = (5, 320, 5) if ON_GPU else (2, 6, 2)  # batch, channels, groups
WHOLE = replace(FORWARD, enough=0)
CHUNKED = Tuning(unroll=4, enough=10**6, wanted=10**6, shortest=8)
TUNINGS = {"default": (FORWARD, BACKWARD), "whole": (WHOLE, WHOLE), "chunked": (CHUNKED, CHUNKED)}
ALL = {"token_dt": True, "initial": True, "lengths": True}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Run ``scan_triton`` with the tuning that the test names."""
    scan = kernel.scan_triton
    monkeypatch.setattr(
        kernel, "scan_triton", lambda *args: scan(*args, tuning=TUNINGS[request.param])
    )


def check(problem: Problem, dtype: torch.dtype) -> None:
    """Values and all gradients against the float64 reference."""
    expected = problem.gradients("reference")
    found = problem.to(dtype, DEVICE).gradients("triton")
    assert found["y"].dtype == found["b_re"].dtype == dtype
    assert found["final"].dtype == found["alpha_bias"].dtype == torch.float32
    for name, value in expected.items():
        assert worst(found[name], value) < TOLERANCE[dtype], name


@pytest.mark.parametrize("tuned", ["default", "chunked"], indirect=True)
@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.usefixtures("poisoned", "tuned")
def test_all_options_at_every_length(tokens):
    batch, channels, groups = SHAPE
    check(make_problem(batch, tokens, channels, groups, **ALL), torch.float32)


@pytest.mark.parametrize("tuned", ["chunked"], indirect=True)
@pytest.mark.parametrize("options", [{}, {"token_dt": True}, {"lengths": True}, {"initial": True}])
@pytest.mark.usefixtures("poisoned", "tuned")
def test_each_option_alone(options):
    batch, channels, groups = SHAPE
    check(make_problem(batch, LENGTHS[-1], channels, groups, **options), torch.float32)


@pytest.mark.parametrize(
    ("tuned", "dtype"),
    [("whole", torch.bfloat16), ("chunked", torch.float16)],
    indirect=["tuned"],
)
@pytest.mark.usefixtures("poisoned", "tuned")
def test_narrow_inputs(dtype):
    batch, channels, groups = SHAPE
    check(make_problem(batch, LENGTHS[-1], channels, groups, **ALL), dtype)


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (5, 5), (7, 1), (99, 3)])
@pytest.mark.usefixtures("poisoned")
def test_widths_that_blocks_do_not_fill(channels, groups):
    check(make_problem(2, 5, channels, groups, **ALL), torch.float32)


@pytest.mark.usefixtures("poisoned")
def test_slices_of_a_projection_are_read_in_place():
    problem = make_problem(2, 9, 4, 2).to(torch.float32, DEVICE)
    expected = problem.run("triton")
    joined = torch.cat(problem.inputs, dim=-1)
    pieces = joined.split([t.shape[-1] for t in problem.inputs], dim=-1)
    for found, value in zip(replace(problem, inputs=pieces).run("triton"), expected, strict=True):
        assert torch.equal(found, value)


@pytest.mark.parametrize("make", ["transposed", "expanded"])
def test_other_layouts_are_copied(make):
    problem = make_problem(3, 6, 4, 2).to(torch.float32, DEVICE)
    inputs = list(problem.inputs)
    if make == "transposed":
        inputs = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in inputs]
    else:
        inputs[3] = inputs[3][:, :1].expand(3, 6, 4)
    same = replace(problem, inputs=tuple(t.contiguous() for t in inputs))
    for found, value in zip(
        replace(problem, inputs=tuple(inputs)).run("triton"), same.run("triton"), strict=True
    ):
        assert torch.equal(found, value)


@pytest.mark.parametrize("tuned", ["whole", "chunked"], indirect=True)
@pytest.mark.usefixtures("poisoned", "tuned")
def test_held_tokens_leave_the_state_bit_for_bit_and_get_no_gradient():
    problem = make_problem(2, 13, 4, 2, initial=True).to(torch.float32, DEVICE)
    inputs = [torch.full_like(t, float("nan")).requires_grad_() for t in problem.inputs]
    for options in (
        {"token_dt": torch.zeros(2, 13, device=DEVICE)},
        {"lengths": torch.zeros(2, dtype=torch.int64, device=DEVICE)},
    ):
        start = problem.initial_state.detach().requires_grad_()
        y, final = kssm_scan(
            **named(inputs),
            parameters=problem.parameters,
            initial_state=start,
            backend="triton",
            **options,
        )
        assert torch.equal(final, start)
        first = torch.zeros_like(y[:, :1]) if "lengths" in options else y[:, :1]
        assert torch.equal(y, first.expand_as(y))
        found = torch.autograd.grad((final * problem.final_weight).sum(), [start, *inputs])
        assert torch.equal(found[0], problem.final_weight)
        assert all(torch.equal(g, torch.zeros_like(g)) for g in found[1:])


def test_a_scan_cut_in_two_is_the_whole_scan():
    problem = make_problem(2, 23, 4, 2, initial=True).to(torch.float32, DEVICE)
    y, final = problem.run("triton")
    state, parts = problem.initial_state, []
    for window in (slice(0, 9), slice(9, None)):
        inputs = tuple(t[:, window] for t in problem.inputs)
        part, state = replace(problem, inputs=inputs, initial_state=state).run("triton")
        parts.append(part)
    assert worst(torch.cat(parts, 1), y) < 1e-6
    assert worst(state, final) < 1e-6


@pytest.mark.parametrize("tuned", ["whole", "chunked"], indirect=True)
@pytest.mark.usefixtures("tuned")
def test_runs_are_reproducible_bit_for_bit():
    problem = make_problem(2, 13, 3, 1, **ALL).to(torch.bfloat16, DEVICE)
    first, second = problem.gradients("triton"), problem.gradients("triton")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_extreme_numbers_stay_finite_and_stable():
    problem = make_problem(1, 8, 6, 1, initial=True).to(torch.float32, DEVICE)
    extremes = torch.tensor([-1e4, -100.0, -20.0, 20.0, 100.0, 1e4], device=DEVICE)
    inputs = list(problem.inputs)
    inputs[0], inputs[2] = extremes.expand(1, 8, 6), extremes.flip(0).expand(1, 8, 6)
    inputs[3] = torch.zeros_like(inputs[3])
    y, final = replace(problem, inputs=tuple(inputs)).run("triton")
    assert y.isfinite().all()
    start = problem.initial_state.norm(dim=-1)
    assert (final.norm(dim=-1) <= start * (1 + 1e-5)).all()


def test_a_missing_number_stays_in_its_row_and_channel():
    check_missing_number_stays(make_problem(2, 6, 4, 2).to(torch.float32, DEVICE))


def test_long_thin_problems_are_cut_in_time_and_wide_ones_are_not():
    device = torch.device(DEVICE)
    assert Cut.plan((4096, 4096, 1024), 8, FORWARD, device).chunks == 1
    thin = Cut.plan((1, 65536, 32), 1, FORWARD, device)
    assert thin.chunks > 8
    assert thin.chunks * thin.chunk_len >= 65536
    assert (thin.chunks - 1) * thin.chunk_len < 65536


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_a_long_sequence_stays_close_to_float64(dtype, tolerance):
    problem = make_problem(1, 65536, 64, 2)
    expected = problem.run("chunked")
    for found, value in zip(problem.to(dtype, DEVICE).run("triton"), expected, strict=True):
        assert worst(found, value) < tolerance


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
def test_offsets_beyond_31_bits():
    tokens, channels = 2**15, 64
    batch = 2**31 // (tokens * channels) + 1
    wide = [torch.zeros(1, 1, channels, device=DEVICE, dtype=torch.bfloat16)] * 3
    x = torch.zeros(batch, tokens, channels, device=DEVICE, dtype=torch.bfloat16)
    x[-1, -1] = 1
    inputs = [t.expand_as(x).contiguous() for t in wide]
    b = torch.ones(batch, tokens, 1, device=DEVICE, dtype=torch.bfloat16)
    parameters = make_problem(1, 1, channels, 1).to(torch.float32, DEVICE).parameters
    y, final = kssm_scan(**named([*inputs, x, b, b]), parameters=parameters)
    assert (final[-1] != 0).any(-1).all()
    assert (final[:-1] == 0).all()
    assert (y[-1, -1] != 0).any()


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
def test_new_lengths_compile_nothing():
    from kssm.ops.kssm_scan.kernel_launch import forward_kernel

    def kernels() -> int:
        return sum(len(cache[0]) for cache in forward_kernel.device_caches.values())

    def run(tokens: int) -> None:
        make_problem(2, tokens, 96, 3, **ALL).to(torch.float32, DEVICE).gradients("triton")

    run(3)
    before = kernels()
    for tokens in (1, 2, 16, 17, 64):
        run(tokens)
    assert kernels() == before
