"""The in-place step on every backend: equal to the scan, and touching nothing but its slots."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor

from kssm.errors import InvalidInputError
from kssm.ops.kssm_scan import ScanParameters, kssm_scan, kssm_step_
from tests.ops.problems import DEVICE, Problem, make_problem, named, worst

BACKENDS = ["reference"]
if importlib.util.find_spec("triton") is not None:
    BACKENDS.append("triton")
SLOTS = 9


def device_of(backend: str) -> str:
    return DEVICE if backend == "triton" else "cpu"


def arena(problem: Problem) -> Tensor:
    """Slots full of distinct numbers."""
    channels = problem.inputs[3].shape[-1]
    generator = torch.Generator().manual_seed(11)
    values = torch.randn(SLOTS, channels, 2, generator=generator)
    return values.to(problem.inputs[3].device)


def step(
    problem: Problem,
    state: Tensor,
    slots: Tensor,
    backend: str | None,
    token: int = 0,
    **options: Tensor,
) -> Tensor:
    """One token of every row of ``problem``."""
    inputs = named([t[:, token] for t in problem.inputs])
    return kssm_step_(
        **inputs,
        parameters=problem.parameters,
        state=state,
        slots=slots,
        backend=backend,  # pyright: ignore[reportArgumentType]
        **options,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_dt", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("poisoned")
def test_steps_equal_the_scan(backend, with_dt, dtype):
    problem = make_problem(3, 8, 6, 2, token_dt=with_dt).to(dtype, device_of(backend))
    state = arena(problem)
    slots = torch.tensor([7, 0, 4], device=state.device)
    y_scan, final = kssm_scan(
        **named(problem.inputs),
        parameters=problem.parameters,
        token_dt=problem.token_dt,
        initial_state=state[slots],
        backend="reference",
    )
    for t in range(8):
        options = {"token_dt": problem.token_dt[:, t]} if with_dt else {}
        y = step(problem, state, slots, backend, t, **options)
        assert y.dtype == dtype
        assert worst(y, y_scan[:, t]) < (1e-6 if dtype == torch.float32 else 1e-2)
    assert worst(state[slots], final) < (1e-6 if dtype == torch.float32 else 1e-3)


def test_double_precision_steps_equal_the_scan():
    problem = make_problem(2, 5, 4, 1, token_dt=True)
    state = torch.zeros(3, 4, 2, dtype=torch.float64)
    slots = torch.tensor([2, 1])
    y_scan, final = problem.run("reference")
    for t in range(5):
        y = step(problem, state, slots, None, t, token_dt=problem.token_dt[:, t])
        assert worst(y, y_scan[:, t]) < 1e-13
    assert worst(state[slots], final) < 1e-13


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("poisoned")
def test_slots_may_come_in_any_order(backend):
    problem = make_problem(4, 1, 5, 1).to(torch.float32, device_of(backend))
    slots = torch.tensor([3, 8, 0, 5], device=problem.inputs[3].device)
    straight, shuffled = arena(problem), arena(problem)
    y = step(problem, straight, slots, backend)
    order = torch.tensor([2, 0, 3, 1], device=slots.device)
    turned = Problem(
        tuple(t[order] for t in problem.inputs), problem.parameters, None, None, None, y, y
    )
    assert worst(step(turned, shuffled, slots[order], backend), y[order]) < 1e-6
    assert worst(shuffled, straight) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("poisoned")
def test_other_slots_keep_every_bit_and_padding_rows_read_zero(backend):
    problem = make_problem(4, 1, 5, 1).to(torch.float32, device_of(backend))
    for t in problem.inputs:
        t[1:3] = float("nan")
    state = arena(problem)
    before = state.clone()
    slots = torch.tensor([3, -1, -1, 5], device=state.device)
    y = step(problem, state, slots, backend)
    assert torch.equal(y[1:3], torch.zeros_like(y[1:3]))
    assert y[[0, 3]].isfinite().all()
    others = [slot for slot in range(SLOTS) if slot not in (3, 5)]
    assert torch.equal(state[others], before[others])
    assert (state[[3, 5]] != before[[3, 5]]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_is_its_rows_alone(backend):
    problem = make_problem(3, 1, 6, 2).to(torch.float32, device_of(backend))
    together, alone = arena(problem), arena(problem)
    slots = torch.tensor([2, 6, 1], device=together.device)
    y = step(problem, together, slots, backend)
    for row in range(3):
        one = Problem(
            tuple(t[row : row + 1] for t in problem.inputs),
            problem.parameters, None, None, None, y, y,
        )  # fmt: skip
        assert worst(step(one, alone, slots[row : row + 1], backend)[0], y[row]) < 1e-6
    assert worst(alone, together) < 1e-6


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pair_that_would_not_be_finite_is_not_written(backend):
    problem = make_problem(2, 1, 5, 1).to(torch.float32, device_of(backend))
    slots = torch.tensor([4, 2], device=problem.inputs[3].device)
    clean = arena(problem)
    y_clean = step(problem, clean, slots, backend)
    for place in range(4):
        for wrong in (float("nan"), float("inf")) if place == 3 else (float("nan"),):
            state = arena(problem)
            before = state.clone()
            inputs = [t.clone() for t in problem.inputs]
            inputs[place][0, 0, 3] = wrong
            hit = Problem(tuple(inputs), problem.parameters, None, None, None, y_clean, y_clean)
            y = step(hit, state, slots, backend)
            assert not y[0, 3].isfinite()
            assert torch.equal(state[4, 3], before[4, 3])
            y[0, 3], state[4, 3] = y_clean[0, 3], clean[4, 3]
            assert torch.equal(y, y_clean)
            assert torch.equal(state, clean)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_of_no_time_reads_the_state_and_leaves_it(backend):
    problem = make_problem(2, 1, 4, 1).to(torch.float32, device_of(backend))
    state = arena(problem)
    before = state.clone()
    slots = torch.tensor([1, 5], device=state.device)
    for t in problem.inputs:
        t[:] = float("nan")
    y = step(problem, state, slots, backend, token_dt=torch.zeros(2, device=state.device))
    assert torch.equal(state, before)
    p = problem.parameters
    expected = p.c_re * before[slots][..., 0] + p.c_im * before[slots][..., 1]
    assert worst(y, expected) < 1e-6


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="needs a CUDA device")
def test_slots_beyond_31_bits():
    problem = make_problem(1, 1, 256, 1).to(torch.float32, DEVICE)
    rows = 2**31 // 512 + 8
    state = torch.zeros(rows, 256, 2, device=DEVICE)
    slots = torch.tensor([rows - 1], device=DEVICE)
    y = step(problem, state, slots, "triton")
    small = torch.zeros(1, 256, 2, device=DEVICE)
    assert torch.equal(step(problem, small, slots * 0, "triton"), y)
    assert torch.equal(state[-1], small[0])
    assert not state[:-1].any()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"state": torch.zeros(3, 4)}, "wrong_shape"),
        ({"state": torch.zeros(3, 4, 2, dtype=torch.float64)}, "wrong_dtype"),
        ({"state": torch.zeros(3, 2, 4).transpose(1, 2)}, "wrong_shape"),
        ({"slots": torch.zeros(1, dtype=torch.int64)}, "wrong_shape"),
        ({"slots": torch.zeros(2, dtype=torch.int32)}, "wrong_dtype"),
        ({"slots": torch.zeros(2, dtype=torch.int64, device="meta")}, "wrong_device"),
    ],
)
def test_wrong_input_is_refused(change, code):
    problem = make_problem(2, 1, 4, 2).to(torch.float32)
    good = {"state": torch.zeros(3, 4, 2), "slots": torch.tensor([0, 1])}
    with pytest.raises(InvalidInputError) as caught:
        step(problem, backend=None, **(good | change))
    assert caught.value.code == code


def test_the_step_asks_for_no_gradient():
    problem = make_problem(1, 1, 4, 1).to(torch.float32)
    parameters = ScanParameters(*(p.requires_grad_() for p in problem.parameters))
    inputs = [t[:, 0].requires_grad_() for t in problem.inputs]
    state, slots = torch.zeros(1, 4, 2), torch.tensor([0])
    y = kssm_step_(**named(inputs), parameters=parameters, state=state, slots=slots)
    assert not y.requires_grad
