"""S4D against its recurrence in float64 and its explicit convolution kernel."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kssm.errors import InvalidInputError
from kssm.models.s4d import S4D, Discretization, S4DBlock, S4DConfig
from kssm.ops.diagonal_scan import convolution_kernel, diagonal_convolution, diagonal_scan
from kssm.ops.linear_scan import linear_scan

WIDTH, MODES, ROWS = 6, 16, 3
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
RULES: list[Discretization] = ["zoh", "bilinear"]


def block(rule: Discretization, dtype: torch.dtype = torch.float32) -> S4DBlock:
    torch.manual_seed(0)
    config = S4DConfig(d_model=WIDTH, n_layers=1, d_state=MODES, d_mlp=0, discretization=rule)
    return S4DBlock(config).to(dtype).requires_grad_(False)


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_transition(layer: S4DBlock, dt: Tensor) -> tuple[Tensor, Tensor]:
    """Decay and gain by their textbook formulas in complex128; dt [...] -> [..., D, N]."""
    a = torch.complex(-layer.log_decay.double().exp(), layer.frequency.double())
    z = dt[..., None, None] * layer.log_step.double().exp().unsqueeze(-1) * a
    if layer.config.discretization == "bilinear":
        return (1 + z / 2) / (1 - z / 2), z / a / (1 - z / 2)
    return z.exp(), (z.exp() - 1) / a


def exact(layer: S4DBlock, x: Tensor, dt: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence of the state space alone, token by token in float64."""
    c = torch.complex(layer.c_re.double(), layer.c_im.double())
    outputs: list[Tensor] = []
    for t in range(x.shape[1]):
        decay, gain = exact_transition(layer, dt[:, t])
        state = decay * state + gain * x[:, t].unsqueeze(-1)
        outputs.append(2 * (state * c).real.sum(-1))
    return torch.stack(outputs, dim=1), state


def worst(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


def start() -> Tensor:
    return torch.complex(draw(ROWS, WIDTH, MODES, seed=2), draw(ROWS, WIDTH, MODES, seed=3))


def c_of(layer: S4DBlock) -> Tensor:
    return torch.complex(layer.c_re, layer.c_im)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("length", [1, 5, 64, 65, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_convolution_is_the_recurrence(
    rule: Discretization, length: int, dtype: torch.dtype
) -> None:
    layer, x, state = block(rule, dtype), draw(ROWS, length, WIDTH), start()
    expected = exact(layer, x, torch.ones(ROWS, length, dtype=torch.float64), state)
    decay, gain = layer.transition(None)
    narrow = state.to(c_of(layer).dtype)
    found = diagonal_convolution(x.to(dtype), decay, gain, c_of(layer), narrow, None)
    assert all(worst(a, b) <= TOLERANCE[dtype] for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("length", [1, 128, 150])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_scan_is_the_recurrence(rule: Discretization, length: int, dtype: torch.dtype) -> None:
    layer, x, state = block(rule, dtype), draw(ROWS, length, WIDTH), start()
    dt = 3 * torch.rand(ROWS, length, dtype=torch.float64)
    expected = exact(layer, x, dt, state)
    narrow = state.to(c_of(layer).dtype)
    found = diagonal_scan(x.to(dtype), dt.to(dtype), layer.transition, c_of(layer), narrow)
    assert all(worst(a, b) <= TOLERANCE[dtype] for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("lengths", [[0, 64, 65], [130, 1, 128], [63, 127, 129]])
def test_the_convolution_stops_at_the_lengths(lengths: list[int]) -> None:
    layer, x, state = block("zoh", torch.float64), draw(ROWS, 130, WIDTH), start()
    decay, gain = layer.transition(None)
    y, end = diagonal_convolution(x, decay, gain, c_of(layer), state, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        ones = torch.ones(1, length, dtype=torch.float64)
        own = state[row : row + 1]
        if length:
            expected, own = exact(layer, x[row : row + 1, :length], ones, own)
            assert worst(y[row : row + 1, :length], expected) <= 1e-12
            assert worst(end[row : row + 1], own) <= 1e-12
        else:
            assert torch.equal(end[row : row + 1], own)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_from_zero_it_is_the_convolution_with_the_kernel(
    rule: Discretization, dtype: torch.dtype
) -> None:
    length = 150
    layer, x = block(rule, dtype), draw(ROWS, length, WIDTH)
    decay, gain = exact_transition(layer, torch.ones((), dtype=torch.float64))
    times = torch.arange(length)
    c = torch.complex(layer.c_re.double(), layer.c_im.double())
    kernel = 2 * torch.einsum("dn,dnl->dl", c * gain, decay.unsqueeze(-1) ** times).real
    own = layer.transition(None)
    assert worst(convolution_kernel(*own, c_of(layer), length), kernel) <= TOLERANCE[dtype]

    distance = times.unsqueeze(1) - times
    toeplitz = torch.where(distance >= 0, kernel[:, distance.clamp_min(0)], 0.0)
    expected = torch.einsum("dij,bjd->bid", toeplitz, x)
    zero = torch.zeros(ROWS, WIDTH, MODES, dtype=c_of(layer).dtype)
    y, _ = diagonal_convolution(x.to(dtype), *own, c_of(layer), zero, None)
    assert worst(y, expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("rule", RULES)
def test_a_token_without_time_does_nothing(rule: Discretization) -> None:
    decay, gain = block(rule).transition(torch.zeros(2))
    assert torch.equal(decay, torch.ones_like(decay))
    assert torch.equal(gain, torch.zeros_like(gain))


def test_zero_order_hold_does_not_depend_on_how_time_is_cut() -> None:
    layer = block("zoh", torch.float64)
    whole, gain = layer.transition(torch.ones(1, dtype=torch.float64))
    part, own = layer.transition(torch.full((1,), 0.25, dtype=torch.float64))
    torch.testing.assert_close(part**4, whole)
    torch.testing.assert_close(own * (1 + part + part**2 + part**3), gain)


@pytest.mark.parametrize("with_dt", [False, True])
def test_gradients_match_finite_differences(with_dt: bool) -> None:
    torch.manual_seed(0)
    config = S4DConfig(d_model=2, n_layers=1, d_state=2, d_mlp=2)
    layer = S4DBlock(config).double()
    names = ("log_step", "log_decay", "frequency", "c_re", "c_im")
    dt = torch.rand(1, 7, dtype=torch.float64) + 0.5 if with_dt else None
    given = [layer.get_parameter(name).detach().clone().requires_grad_() for name in names]
    x, state = draw(1, 7, 2).requires_grad_(), draw(1, 2, 2, 2).requires_grad_()

    def run(x: Tensor, state: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        arguments = (x, {"state": state}, None, dt)
        values = dict(zip(names, weights, strict=True))
        y, new = torch.func.functional_call(layer, values, arguments)
        return y, new["state"]

    assert torch.autograd.gradcheck(run, (x, state, *given))


def test_gradients_of_pieces_are_those_of_the_whole() -> None:
    layer = block("zoh", torch.float64)
    inputs = [draw(1, 300, WIDTH), start()[:1], c_of(layer)]
    inputs = [entry.requires_grad_() for entry in inputs]
    x, state, c = inputs
    dt = torch.ones(1, 300, dtype=torch.float64)
    decay, gain = layer.transition(None)
    gradients: list[tuple[Tensor, ...]] = []
    for y, end in (
        diagonal_scan(x, dt, layer.transition, c, state),
        diagonal_convolution(x, decay, gain, c, state, None),
    ):
        loss = y.square().sum() + end.abs().square().sum()
        gradients.append(torch.autograd.grad(loss, inputs))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_complex_linear_scan_has_the_right_gradients() -> None:
    def pairs(*shape: int, seed: int) -> Tensor:
        return torch.complex(draw(*shape, seed=seed), draw(*shape, seed=seed + 1)).requires_grad_()

    inputs = (pairs(1, 40, 2, seed=4), pairs(1, 40, 2, seed=6), pairs(1, 2, seed=8))
    scaled = (inputs[0] * 0.4, *inputs[1:])
    assert torch.autograd.gradcheck(
        linear_scan, [entry.detach().requires_grad_() for entry in scaled]
    )


def test_initialisation_is_s4d_lin() -> None:
    layer = block("zoh")
    torch.testing.assert_close(layer.log_decay.exp(), torch.full((WIDTH, MODES), 0.5))
    torch.testing.assert_close(layer.frequency[2], math.pi * torch.arange(MODES).float())
    step = S4DBlock(S4DConfig(d_model=4096, d_state=1, d_mlp=0)).log_step.exp()
    assert 1e-3 <= step.min() < 1.1e-3
    assert 0.09 < step.max() <= 0.1


def test_autocast_keeps_the_state_in_fp32() -> None:
    torch.manual_seed(0)
    model = S4D(S4DConfig(d_model=16, n_layers=2, d_mlp=16)).requires_grad_(False)
    x = draw(2, 200, 16).float()
    dt = torch.ones(2, 200)
    exact, _ = model(x)
    for steps in (None, dt):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, state = model(x, dt=steps)
        assert {entry.dtype for entry in state.values()} == {torch.float32}
        assert worst(y.float(), exact) < 0.03


def test_config_is_checked() -> None:
    for wrong in ({"d_state": 0}, {"d_mlp": -1}, {"discretization": "euler"}):
        with pytest.raises(InvalidInputError) as error:
            S4DConfig(**wrong)
        assert error.value.code == "invalid_config"
