"""The plain-PyTorch scans against the textbook equations, each other and finite differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kssm.errors import InvalidInputError
from kssm.ops.kssm_scan import ScanParameters, kssm_scan
from kssm.ops.kssm_scan.chunked import SEGMENT
from kssm.ops.kssm_scan.gates import compute_gates
from tests.ops.problems import NAMES, Problem, make_problem, named, worst

BACKENDS = ["reference", "chunked"]
LENGTHS = [1, 2, 7, 63, 500]
OPTIONS = [
    {},
    {"initial": True},
    {"token_dt": True},
    {"lengths": True},
    {"token_dt": True, "initial": True, "lengths": True},
]


def textbook(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """The equations as the design states them: complex λ and γ, one token after the other."""
    alpha, omega, dt, x, b_re, b_im = problem.inputs
    p = problem.parameters
    batch, tokens, channels = x.shape
    a = torch.log1p(torch.exp(alpha + p.alpha_bias))
    w = p.omega_scale * (omega + p.omega_bias)
    step = torch.log1p(torch.exp(dt + p.dt_bias))
    if problem.token_dt is not None:
        step = step * problem.token_dt[..., None]
    group = torch.arange(channels) // (channels // b_re.shape[-1])
    b = torch.complex(b_re, b_im)[..., group]
    z = step / 2 * torch.complex(a, w)
    decay, gain = (1 - z) / (1 + z), step / (1 + z)
    h = torch.zeros(batch, channels, dtype=torch.complex128)
    if problem.initial_state is not None:
        h = torch.view_as_complex(problem.initial_state)
    ends = torch.full((batch,), tokens) if problem.lengths is None else problem.lengths
    y = torch.zeros_like(x)
    for t in range(tokens):
        alive = (t < ends)[:, None]
        h = torch.where(alive, decay[:, t] * h + gain[:, t] * b[:, t] * x[:, t], h)
        y[:, t] = torch.where(alive, p.c_re * h.real + p.c_im * h.imag, 0)
    return y, torch.view_as_real(h)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("poisoned")
def test_scan_follows_the_equations(backend, tokens, options):
    problem = make_problem(3, tokens, 6, 2, **options)
    for found, expected in zip(problem.run(backend), textbook(problem), strict=True):
        assert worst(found, expected) < 1e-12


@pytest.mark.usefixtures("poisoned")
def test_chunked_crosses_segments():
    problem = make_problem(1, SEGMENT + 70, 2, 1, token_dt=True, initial=True)
    reference, chunked = problem.gradients("reference"), problem.gradients("chunked")
    for name, expected in reference.items():
        assert worst(chunked[name], expected) < 1e-10, name


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("tokens", [1, 7, 63])
@pytest.mark.usefixtures("poisoned")
def test_chunked_gradients_match_autograd_through_the_reference(tokens, options):
    problem = make_problem(2, tokens, 6, 3, **options)
    reference, chunked = problem.gradients("reference"), problem.gradients("chunked")
    for name, expected in reference.items():
        assert worst(chunked[name], expected) < 1e-11, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_match_finite_differences(backend):
    problem = make_problem(2, 5, 4, 2, token_dt=True, initial=True, lengths=True)
    leaves = [*problem.inputs, *problem.parameters, problem.initial_state]

    def scan(*tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return kssm_scan(
            **named(tensors[:6]),
            parameters=ScanParameters(*tensors[6:12]),
            token_dt=problem.token_dt,
            initial_state=tensors[12],
            lengths=problem.lengths,
            backend=backend,
        )

    assert torch.autograd.gradcheck(scan, [t.detach().requires_grad_() for t in leaves])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.usefixtures("poisoned")
def test_narrow_inputs_stay_close_to_float64(backend, dtype, tolerance):
    problem = make_problem(2, 500, 8, 2, token_dt=True, initial=True)
    expected, found = problem.gradients("reference"), problem.to(dtype).gradients(backend)
    assert found["y"].dtype == found["x"].dtype == dtype
    assert found["final"].dtype == found["c_re"].dtype == torch.float32
    for name, value in expected.items():
        assert worst(found[name], value) < tolerance, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_slow_decays_keep_their_time_constant(backend):
    """λ rounded to fp32 would be off by 1e-4 here: the same wrong decay at every token."""
    noise = make_problem(1, 4096, 16, 1, seed=3)
    still = torch.zeros(1, 4096, 16, dtype=torch.float64)
    rates = torch.logspace(-6, -3, 16, dtype=torch.float64)
    one = torch.ones(16, dtype=torch.float64)
    problem = replace(
        noise,
        inputs=(still, still, still, noise.inputs[3], still[..., :1] + 1, still[..., :1]),
        parameters=ScanParameters(torch.log(torch.expm1(rates)), rates, one, one, one, one),
    )
    expected = problem.run("reference")
    for found, exact in zip(problem.to(torch.float32).run(backend), expected, strict=True):
        assert worst(found, exact) < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cut", [1, 31, 32, 70])
def test_a_scan_cut_in_two_is_the_whole_scan(backend, cut):
    problem = make_problem(2, 90, 4, 2, token_dt=True, initial=True)
    y, final = problem.run(backend)
    state, parts = problem.initial_state, []
    for window in (slice(0, cut), slice(cut, None)):
        part, state = kssm_scan(
            **named([t[:, window] for t in problem.inputs]),
            parameters=problem.parameters,
            token_dt=problem.token_dt[:, window],
            initial_state=state,
            backend=backend,
        )
        parts.append(part)
    assert worst(torch.cat(parts, 1), y) < 1e-13
    assert worst(state, final) < 1e-13


@pytest.mark.parametrize("backend", BACKENDS)
def test_held_tokens_leave_the_state_bit_for_bit(backend):
    problem = make_problem(2, 70, 4, 2, initial=True).to(torch.float32)
    idle = torch.zeros(2, 70)
    for options in ({"token_dt": idle}, {"lengths": torch.tensor([0, 0])}):
        _, final = kssm_scan(
            **named(problem.inputs),
            parameters=problem.parameters,
            initial_state=problem.initial_state,
            backend=backend,
            **options,
        )
        assert torch.equal(final, problem.initial_state)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tokens", [7, 45])
def test_what_padding_holds_changes_no_bit(backend, tokens):
    problem = make_problem(2, tokens, 3, 1, initial=True).to(torch.float32)
    y, final = problem.run(backend)
    for options in (
        {"lengths": torch.full((2,), tokens)},
        {"token_dt": F.pad(torch.ones(2, tokens), (0, 9))},
    ):
        runs = [
            kssm_scan(
                **named([F.pad(t, (0, 0, 0, 9), value=filler) for t in problem.inputs]),
                parameters=problem.parameters,
                initial_state=problem.initial_state,
                backend=backend,
                **options,
            )
            for filler in (float("nan"), 3.0)
        ]
        (found, end), (other, other_end) = runs
        assert torch.equal(found, other)
        assert torch.equal(end, other_end)
        assert worst(found[:, :tokens], y) < 1e-6
        assert worst(end, final) < 1e-6
        idle = torch.zeros_like(y) if "lengths" in options else found[:, tokens - 1 : tokens]
        assert torch.equal(found[:, tokens:], idle[:, :1].expand(2, 9, 3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_gets_zero_gradients_whatever_it_holds(backend):
    problem = make_problem(2, 6, 3, 1).to(torch.float32)
    padded = [F.pad(t, (0, 0, 0, 4), value=float("nan")).requires_grad_() for t in problem.inputs]
    factor = F.pad(torch.ones(2, 6), (0, 4))
    for options in ({"lengths": torch.tensor([6, 6])}, {"token_dt": factor}):
        y, final = kssm_scan(
            **named(padded), parameters=problem.parameters, backend=backend, **options
        )
        for gradient in torch.autograd.grad(y.sum() + final.sum(), padded):
            assert gradient[:, :6].isfinite().all()
            assert torch.equal(gradient[:, 6:], torch.zeros_like(gradient[:, 6:]))


extremes = st.floats(-1e4, 1e4, width=32)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(alpha=extremes, omega=extremes, dt=st.floats(-1e4, 1e6, width=32))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_state_never_grows_by_itself(dtype, alpha, omega, dt):
    """|λ| ≤ 1 to rounding and all finite, from alpha → 0 to huge steps."""
    zero, one = torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype)
    parameters = ScanParameters(zero, zero, one, zero, one, zero)
    a, w, step = (torch.tensor([v], dtype=dtype) for v in (alpha, omega, dt))
    gates = compute_gates(a, w, step, None, parameters)
    eps = torch.finfo(dtype).eps
    assert (1 + gates.increment).abs().item() <= 1 + 4 * eps
    assert gates.gain.abs().isfinite().all()
    assert gates.gain.abs().item() <= gates.step.item() * (1 + 4 * eps)


def test_huge_steps_stay_finite():
    problem = make_problem(1, 5, 4, 1)
    large = [t.clone() for t in problem.inputs]
    large[2].fill_(1e30)
    for dtype in (torch.float32, torch.float64):
        inputs = [t.to(dtype) for t in large]
        parameters = ScanParameters(*(p.to(dtype) for p in problem.parameters))
        y, final = kssm_scan(**named(inputs), parameters=parameters)
        assert y.isfinite().all()
        assert final.isfinite().all()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"x": torch.zeros(2, 5)}, "wrong_shape"),
        ({"x": torch.zeros(2, 0, 4)}, "wrong_shape"),
        ({"alpha": torch.zeros(2, 6, 4)}, "wrong_shape"),
        ({"b_re": torch.zeros(2, 5, 3)}, "wrong_shape"),
        ({"b_im": torch.zeros(2, 5, 1)}, "wrong_shape"),
        ({"omega": torch.zeros(2, 5, 4, dtype=torch.int32)}, "wrong_dtype"),
        ({"dt": torch.zeros(2, 5, 4, dtype=torch.float64)}, "wrong_dtype"),
        ({"token_dt": torch.zeros(2, 4)}, "wrong_shape"),
        ({"initial_state": torch.zeros(2, 4)}, "wrong_shape"),
        ({"lengths": torch.zeros(2)}, "wrong_dtype"),
        ({"lengths": torch.zeros(3, dtype=torch.int64)}, "wrong_shape"),
        ({"x": torch.zeros(2, 5, 4, device="meta")}, "wrong_device"),
        ({"backend": "fastest"}, "unknown_backend"),
    ],
)
def test_wrong_input_is_refused(change, code):
    shapes = ((2, 5, 4),) * 4 + ((2, 5, 2),) * 2
    arguments = {n: torch.zeros(s) for n, s in zip(NAMES, shapes, strict=True)} | change
    parameters = ScanParameters(*(torch.zeros(4) for _ in range(6)))
    with pytest.raises(InvalidInputError) as caught:
        kssm_scan(**arguments, parameters=parameters)
    assert caught.value.code == code


def test_parameters_of_the_wrong_width_are_refused():
    problem = make_problem(1, 3, 4, 2).to(torch.float32)
    narrow = problem.parameters._replace(c_re=torch.zeros(3))
    double = problem.parameters._replace(c_re=torch.zeros(4).double())
    with pytest.raises(InvalidInputError) as caught:
        kssm_scan(**named(problem.inputs), parameters=narrow)
    assert caught.value.code == "wrong_shape"
    with pytest.raises(InvalidInputError) as caught:
        kssm_scan(**named(problem.inputs), parameters=double)
    assert caught.value.code == "wrong_dtype"


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # Dynamo's own
def test_compiling_around_the_scan_keeps_results_and_gradients():
    problem = make_problem(1, 9, 4, 2)
    x = problem.inputs[3].detach().requires_grad_()

    def model(value: torch.Tensor) -> torch.Tensor:
        inputs = [*problem.inputs[:3], value * 2, *problem.inputs[4:]]
        return kssm_scan(**named(inputs), parameters=problem.parameters)[0] * 3

    compiled = torch.compile(model, backend="eager")
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    (found,) = torch.autograd.grad(compiled(x).sum(), x)
    assert torch.equal(found, expected)
