"""The matrix-state scan's Triton kernels against fp64, interpreted where there is no GPU."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from kssm.ops.matrix_scan import matrix_scan
from kssm.ops.matrix_scan.chunked import scan_chunked
from kssm.ops.matrix_scan.kernel import scan_triton
from kssm.ops.matrix_scan.kernel_launch import Chunked, segment_starts
from kssm.ops.matrix_scan.kernel_launch_gates import Tokens, outer_states, turn
from kssm.ops.matrix_scan.kernel_plan import Build, Walk, best_plan, tuned
from tests.ops.matrix_problems import MatrixProblem, make_problem, relative_error, sum_sizes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHORT = torch.bfloat16 if DEVICE == "cuda" else torch.float16  # the interpreter multiplies no bf16
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 1e-2}


def errors(
    problem: MatrixProblem, dtype: torch.dtype, *, strict: bool = False, **change: Any
) -> dict[str, float]:
    """Of y, the last state and every gradient, from the same rounded inputs.

    Not ``strict``: sums over tokens that have cancelled by chance count as what they might be.
    """
    rounded = problem.to(dtype, DEVICE)
    exact = rounded.to(torch.float64, DEVICE)
    values, width = rounded.inputs[0].shape[-1], rounded.inputs[1].shape[-1]
    scan = partial(scan_triton, tuning=replace(tuned(dtype, values, width), **change))
    found = dict(zip(("y", "final"), rounded.run(scan), strict=True))
    expected = dict(zip(("y", "final"), exact.run(scan_chunked), strict=True))
    found |= rounded.gradients(scan)
    expected |= exact.gradients(scan_chunked)
    sizes = {} if strict or dtype == torch.float32 else sum_sizes(exact, expected)
    return {name: relative_error(found[name], expected[name], sizes.get(name)) for name in expected}


def assert_close(problem: MatrixProblem, dtype: torch.dtype, **change: Any) -> None:
    for name, error in errors(problem, dtype, **change).items():
        assert error <= TOLERANCE[dtype], (name, error)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, SHORT])
@pytest.mark.parametrize("options", [False, True])
def test_values_and_gradients(dtype: torch.dtype, options: bool) -> None:
    assert_close(make_problem(tokens=40, options=options), dtype)


@pytest.mark.usefixtures("poisoned")
def test_one_row_is_cut_into_segments() -> None:
    walks = (Walk(Build(4, 1), 8),)
    assert best_plan(1, 19, 1, walks)[:2] == (4, 5)
    assert_close(make_problem(1, 300, 1, 16, 1, 8), torch.float32, walks=walks, chunk=16)


@pytest.mark.usefixtures("poisoned")
def test_gradients_of_segments_at_16_bits() -> None:
    walks = (Walk(Build(4, 1), 8),)
    assert_close(make_problem(1, 300, 1, 16, 1, 8), SHORT, walks=walks, chunk=16)


@pytest.mark.parametrize("pairs", [8, 16])
def test_states_for_gradients_lose_nothing(pairs: int) -> None:
    """What 16 bits cannot hold of B in the turning frame, and of its weights, is added too."""
    problem = make_problem(1, 512, 2, 16, 1, pairs, options=False, slow=-9.0).to(SHORT, DEVICE)
    exact = problem.to(torch.float64, DEVICE)
    tuning = replace(tuned(SHORT, 16, 2 * pairs), walks=(Walk(Build(4, 1), 8),), chunk=16)
    x, b, c, alpha, dt, omega = problem.inputs
    turned = turn(Tokens(b, c, alpha, dt, omega, problem.parameters, None, None, 16), rests=True)
    scan = Chunked(x, *turned[:4], None, None, tuning, turned.b_rest, turned.c_rest)
    span = scan.plan.span * 16
    assert span < 512
    inputs = [t[:, :span] for t in exact.inputs]
    _, state = matrix_scan(*inputs, parameters=exact.parameters, backend="chunked")
    errors: list[float] = []
    for rounded in (True, False):
        starts = segment_starts(scan, rounded=rounded)
        assert starts is not None
        end = turned.prefix[..., : scan.plan.span].contiguous()
        errors.append(relative_error(outer_states(starts[:, 1].contiguous(), end), state))
    assert errors[0] > 1e-4
    assert errors[1] < 1e-5


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("tokens", [128, 1024])
def test_tiles_give_what_loads_give(tokens: int) -> None:
    walks = (Walk(Build(4, 2), 4096),)
    assert (best_plan(2, tokens // 64, 1, walks).segments > 1) == (tokens == 1024)
    problem = make_problem(1, tokens, 2, 64, 1, 32, options=False).to(SHORT, DEVICE)
    tuning = replace(tuned(SHORT, 64, 64), walks=walks, tiles=walks)
    loads = partial(scan_triton, tuning=replace(tuning, tiles=()))
    for tiled, loaded in zip(
        problem.run(partial(scan_triton, tuning=tuning)), problem.run(loads), strict=True
    ):
        assert torch.equal(tiled, loaded)


@pytest.mark.parametrize("output", [0, 1])
def test_either_output_alone_has_gradients(output: int) -> None:
    problem = make_problem(1, 40, 2, 16, 1, 8, options=False).to(torch.float32, DEVICE)
    exact = problem.to(torch.float64, DEVICE)
    gradients: list[Tensor] = []
    for given, scan in ((problem, scan_triton), (exact, scan_chunked)):
        x = given.inputs[0].requires_grad_()
        gradients += torch.autograd.grad(given.run(scan)[output].square().sum(), x)
    assert relative_error(*gradients) <= 1e-5


def test_an_odd_number_of_heads() -> None:
    assert_close(make_problem(1, 40, 3, 16, 1, 16), torch.float32)


@pytest.mark.parametrize(
    ("rows", "chunks", "segments", "registers"),
    [
        (1, 1, 1, 168),
        (16, 4096, 24, 168),  # one long row: cut until the device is full
        (384, 128, 1, 168),
        (1024, 64, 1, 168),
    ],
)
def test_plans_fill_the_device(rows: int, chunks: int, segments: int, registers: int) -> None:
    plan = best_plan(rows, chunks, 132, tuned(torch.bfloat16, 64, 64).walks)
    assert plan.build.registers == registers
    assert plan.segments == pytest.approx(segments, abs=0.1 * segments)
    assert plan.span * plan.segments >= chunks > plan.span * (plan.segments - 1)


def test_slices_of_a_projection_are_read_in_place() -> None:
    problem = make_problem(1, 30, options=False).to(torch.float32, DEVICE)
    flat = [t.flatten(2) for t in problem.inputs]
    wide = torch.cat(flat, dim=-1)
    slices = wide.split([t.shape[-1] for t in flat], dim=-1)
    views: Any = [s.unflatten(-1, t.shape[2:]) for s, t in zip(slices, problem.inputs, strict=True)]
    y, final = matrix_scan(*views, parameters=problem.parameters, backend="triton")
    expected = matrix_scan(*problem.inputs, parameters=problem.parameters, backend="triton")
    assert torch.equal(y, expected[0])
    assert torch.equal(final, expected[1])


def test_rows_know_nothing_of_each_other() -> None:
    problem = make_problem(tokens=40).to(torch.float32, DEVICE)
    y, final = problem.run("triton")
    poisoned = replace(problem, inputs=tuple(t.clone() for t in problem.inputs))
    poisoned.inputs[0][1] = torch.nan
    other, last = poisoned.run("triton")
    assert torch.equal(other[0], y[0])
    assert torch.equal(last[0], final[0])


def test_phases_of_long_rows_do_not_drift() -> None:
    problem = make_problem(1, 2048, 1, 16, 1, 8, slow=-60.0).to(torch.float32, DEVICE)
    problem = replace(problem, lengths=None, token_dt=None)
    problem.inputs[0].zero_()
    exact = problem.to(torch.float64, DEVICE)
    assert relative_error(problem.run("triton")[1], exact.run("chunked")[1]) <= 5e-7


def test_held_rows_keep_every_bit() -> None:
    problem = make_problem(tokens=40).to(torch.float32, DEVICE)
    still = replace(problem, token_dt=torch.zeros_like(problem.token_dt))
    _, final = still.run("triton")
    assert torch.equal(final, problem.initial_state)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("slow", [-9.0, -3.0])
def test_long_rows(dtype: torch.dtype, limit: float, slow: float) -> None:
    problem = make_problem(1, 65536, 4, 64, 1, 32, options=False, slow=slow)
    for name, error in errors(problem, dtype, strict=True).items():
        assert error <= limit, (name, error)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize(("values", "pairs"), [(64, 32), (64, 64), (128, 64)])
@pytest.mark.parametrize("options", [False, True])
def test_every_build_has_the_right_gradients(values: int, pairs: int, options: bool) -> None:
    problem = make_problem(2, 1000, 4, values, 2, pairs, options=options)
    for walk in tuned(torch.bfloat16, values, 2 * pairs).walks:
        assert_close(problem, torch.bfloat16, walks=(walk,))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_gradients_of_tiles() -> None:
    problem = make_problem(2, 1024, 4, 64, 2, 32, options=False)
    assert_close(problem, torch.bfloat16)
