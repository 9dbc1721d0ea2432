"""The matrix-state scan in plain PyTorch: reference, chunks, step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kssm.errors import InvalidInputError
from kssm.ops.matrix_scan import MatrixParameters, matrix_scan, matrix_step_
from kssm.ops.matrix_scan.gates import compute_gates
from tests.ops.matrix_problems import MatrixProblem, make_problem, relative_error


def assert_equal_runs(problem: MatrixProblem, tolerance: float) -> None:
    for actual, expected in zip(problem.run("chunked"), problem.run("reference"), strict=True):
        assert relative_error(actual, expected) <= tolerance


@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 150])
@pytest.mark.parametrize("options", [False, True])
def test_chunked_equals_reference(tokens: int, options: bool) -> None:
    assert_equal_runs(make_problem(tokens=tokens, values=3, pairs=5, options=options), 1e-12)


def test_pieces_equal_reference() -> None:
    assert_equal_runs(make_problem(1, 1100, 2, 2, 1, 3), 1e-12)


@pytest.mark.parametrize("options", [False, True])
def test_gradients_of_chunked_equal_reference(options: bool) -> None:
    problem = make_problem(tokens=100, values=3, pairs=5, options=options)
    expected = problem.gradients("reference")
    for name, actual in problem.gradients("chunked").items():
        assert relative_error(actual, expected[name]) <= 1e-11, name


def test_reference_passes_gradcheck() -> None:
    problem = make_problem(2, 4, 2, 2, 1, 2)
    leaves = [*problem.inputs, *problem.parameters, problem.initial_state]

    def scan(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        x, b, c, alpha, dt, omega, alpha_bias, dt_bias, rate, initial = tensors
        return matrix_scan(
            *(x, b, c, alpha, dt, omega),
            MatrixParameters(alpha_bias, dt_bias, rate),
            token_dt=problem.token_dt,
            initial_state=initial,
            lengths=problem.lengths,
            backend="reference",
        )

    assert torch.autograd.gradcheck(scan, [leaf.requires_grad_() for leaf in leaves])


def test_a_pair_turns_and_decays_as_the_equations_say() -> None:
    q, v, tokens = 0.2, 0.3, 9
    dt = 0.5
    softplus_inverse = [math.log(math.expm1(value)) for value in (2 * q / dt, dt)]
    one = torch.ones(1, 1, dtype=torch.float64)
    alpha_bias, dt_bias = (torch.tensor([value], dtype=torch.float64) for value in softplus_inverse)
    parameters = MatrixParameters(alpha_bias, dt_bias, 2 * v * one)
    zeros = torch.zeros(1, tokens, 1, dtype=torch.float64)
    x = torch.zeros(1, tokens, 1, 1, dtype=torch.float64)
    x[0, 0] = 3.0
    b = torch.tensor([0.5, -1.0], dtype=torch.float64).expand(1, tokens, 1, 2)
    c = torch.tensor([2.0, 0.7], dtype=torch.float64).expand(1, tokens, 1, 2)
    inputs = (x, b, c, zeros, zeros, zeros.unsqueeze(-1))
    y, final = matrix_scan(*inputs, parameters=parameters, backend="chunked")
    u = q / math.sqrt(1 + q * q)
    factor = (1 - u) / (1 + u) * complex(1, -v) / complex(1, v)
    h = dt / (1 + u) / complex(1, v) * 3.0 * complex(0.5, -1.0)
    for t in range(tokens):
        assert y[0, t, 0, 0].item() == pytest.approx((complex(2.0, -0.7) * h).real, rel=1e-13)
        last, h = h, h * factor
    assert final.flatten().tolist() == pytest.approx([last.real, last.imag], rel=1e-13)


@pytest.mark.parametrize("cut", [1, 30, 64, 69])
def test_a_cut_anywhere_gives_the_same(cut: int) -> None:
    problem = make_problem(options=False)
    y, final = problem.run("chunked")
    first: Any = [t[:, :cut] for t in problem.inputs]
    rest: Any = [t[:, cut:] for t in problem.inputs]
    head, middle = matrix_scan(*first, parameters=problem.parameters)
    tail, end = matrix_scan(*rest, parameters=problem.parameters, initial_state=middle)
    assert relative_error(torch.cat([head, tail], 1), y) <= 1e-12
    assert relative_error(end, final) <= 1e-12


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_held_tokens_change_no_bit(backend: Any) -> None:
    problem = make_problem().to(torch.float32)
    options: Any = {"initial_state": problem.initial_state, "backend": backend}
    still = torch.zeros_like(problem.token_dt)
    _, state = matrix_scan(
        *problem.inputs, parameters=problem.parameters, token_dt=still, **options
    )
    assert torch.equal(state, problem.initial_state)
    garbage: Any = [t.clone() for t in problem.inputs]
    garbage[0][:, 20:] = torch.nan
    lengths = torch.tensor([20, 0])
    y, state = matrix_scan(*garbage, parameters=problem.parameters, lengths=lengths, **options)
    assert torch.equal(state[1], problem.initial_state[1])
    assert (y[0, 20:] == 0).all()
    assert torch.isfinite(state).all()
    short: Any = [t[:1, :20] for t in problem.inputs]
    options["initial_state"] = problem.initial_state[:1]
    own, last = matrix_scan(*short, parameters=problem.parameters, **options)
    assert relative_error(y[:1, :20], own) <= 1e-5
    assert relative_error(state[:1], last) <= 1e-5


def test_phases_do_not_drift() -> None:
    problem = make_problem(1, 20000, 1, 1, 1, 4, options=False, slow=-9.0)
    expected = problem.run("chunked")
    for actual, value in zip(problem.to(torch.float32).run("chunked"), expected, strict=True):
        assert relative_error(actual, value) <= 1e-5


numbers = st.floats(-1e4, 1e4)


@given(alpha=numbers, dt=numbers, omega=numbers, rate=st.floats(0, 1e8), factor=st.floats(0, 1e8))
@settings(max_examples=200, deadline=None)
def test_no_state_grows(alpha: float, dt: float, omega: float, rate: float, factor: float) -> None:
    def one(value: float) -> Tensor:
        return torch.tensor([value])

    parameters = MatrixParameters(one(0.0), one(0.0), one(rate).unsqueeze(0))
    token: Any = (one(alpha).unsqueeze(0), one(dt).unsqueeze(0), one(omega).view(1, 1, 1))
    gates = compute_gates(*token, factor=one(factor), parameters=parameters)
    assert gates.log_decay.item() <= 0
    assert 0 <= gates.gain.item() < math.inf
    assert abs(gates.half_angle.item()) <= math.pi / 2 + 1e-6


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def run_steps(problem: MatrixProblem, backend: Any, arena: Tensor, slots: Tensor) -> Tensor:
    outputs: list[Tensor] = []
    for t in range(problem.inputs[0].shape[1]):
        token: Any = [entry[:, t] for entry in problem.inputs]
        token_dt = None if problem.token_dt is None else problem.token_dt[:, t]
        options: Any = {"token_dt": token_dt, "backend": backend}
        outputs.append(
            matrix_step_(*token, parameters=problem.parameters, state=arena, slots=slots, **options)
        )
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("sizes", [(16, 8), (8, 4), (2, 1)])
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_steps_equal_the_scan(backend: str, sizes: tuple[int, int]) -> None:
    """Values and pairs of a head may be fewer than the scan's kernels take."""
    values, pairs = sizes
    device = DEVICE if backend == "triton" else "cpu"
    problem = make_problem(tokens=12, values=values, pairs=pairs).to(torch.float32, device)
    y, final = matrix_scan(
        *problem.inputs,
        parameters=problem.parameters,
        token_dt=problem.token_dt,
        initial_state=problem.initial_state,
    )
    arena = torch.randn(5, *problem.initial_state.shape[1:], device=device)
    slots = torch.tensor([3, 1], device=device)
    arena[slots] = problem.initial_state
    assert relative_error(run_steps(problem, backend, arena, slots), y) <= 1e-5
    assert relative_error(arena[slots], final) <= 1e-5


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # of NumPy under the interpreter
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_steps_touch_only_what_advances(backend: Any) -> None:
    device = DEVICE if backend == "triton" else "cpu"
    problem = make_problem(4, 1).to(torch.float32, device)
    token: Any = [entry[:, 0] for entry in problem.inputs]
    token[0][3, 0, 5] = torch.inf
    arena = torch.randn(6, *problem.initial_state.shape[1:], device=device)
    before = arena.clone()
    slots = torch.tensor([4, -1, 2, 5], device=device)
    factor = torch.tensor([1.0, 1.0, 0.0, 1.0], device=device)
    y = matrix_step_(
        *token,
        parameters=problem.parameters,
        state=arena,
        slots=slots,
        token_dt=factor,
        backend=backend,
    )
    assert (y[1] == 0).all()
    for untouched in (0, 1, 2, 3):
        assert torch.equal(arena[untouched], before[untouched])
    assert not torch.equal(arena[4], before[4])
    assert torch.equal(arena[5, 0, 5], before[5, 0, 5])
    assert not torch.isfinite(y[3, 0, 5])
    assert torch.isfinite(arena).all()


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("wrong_shape", lambda a: a.update(b=a["b"][..., :-1])),
        ("wrong_shape", lambda a: a.update(alpha=a["alpha"][..., :-1])),
        ("wrong_shape", lambda a: a.update(omega=torch.zeros(2, 70, 3, 8))),
        ("wrong_shape", lambda a: a.update(lengths=torch.zeros(3, dtype=torch.long))),
        ("wrong_shape", lambda a: a.update(initial_state=torch.zeros(2, 4, 16, 8))),
        ("wrong_dtype", lambda a: a.update(x=a["x"].long())),
        ("wrong_dtype", lambda a: a.update(dt=a["dt"].double())),
        ("unknown_backend", lambda a: a.update(backend="cuda")),
        ("backend_unavailable", lambda a: a.update(x=a["x"][..., :5], backend="triton")),
    ],
)
def test_bad_input_is_refused(code: str, change: Change) -> None:
    problem = make_problem(options=False).to(torch.float32)
    names = ("x", "b", "c", "alpha", "dt", "omega")
    arguments: dict[str, Any] = dict(zip(names, problem.inputs, strict=True))
    arguments["parameters"] = problem.parameters
    change(arguments)
    with pytest.raises(InvalidInputError) as error:
        matrix_scan(**arguments)
    assert error.value.code == code
