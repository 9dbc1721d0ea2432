"""KSSM's own parts: initialisation, configuration, selection."""

from __future__ import annotations

import math

import pytest
import torch

from kssm.errors import InvalidInputError
from kssm.models import KSSM, KSSMConfig, nuclear_init
from kssm.models.kssm import KSSMBlock

CONFIG = KSSMConfig(d_model=16, n_layers=1, d_inner=2048, d_mlp=0, rank=4, group_size=64)


def block(seed: int = 0) -> KSSMBlock:
    torch.manual_seed(seed)
    return KSSMBlock(CONFIG).requires_grad_(False)


def eigenvalues(layer: KSSMBlock) -> torch.Tensor:
    """The multipliers of a step when the input asks for no deviation."""
    alpha = torch.nn.functional.softplus(layer.alpha_bias.double())
    omega = layer.omega_scale.double() * layer.omega_bias.double()
    z = 0.5 * torch.nn.functional.softplus(layer.dt_bias.double()) * torch.complex(alpha, omega)
    return (1 - z) / (1 + z)


def test_nuclear_init_spreads_time_constants_and_frequencies() -> None:
    layer = block()
    nuclear_init(layer, long_memory=1000.0, freq_min=1 / 500, freq_max=1 / 4)
    multiplier = eigenvalues(layer)
    assert (multiplier.abs() < 1).all()
    frequency = multiplier.angle().abs() / (2 * math.pi)
    turning = frequency[frequency > 1e-3]
    still = 1 - len(turning) / len(frequency)
    assert 0.08 < still < 0.17
    assert turning.min() < 1 / 400
    assert turning.max() < 1 / 3.9
    assert turning.median() == pytest.approx((1 / 500 / 4) ** 0.5, rel=0.2)
    decay = -1 / multiplier[frequency <= 1e-3].abs().log()
    assert decay.min() < 6
    assert 500 < decay.max() <= 1001


def test_nuclear_init_starts_every_channel_equally_loud() -> None:
    layer = block()
    dt = torch.nn.functional.softplus(layer.dt_bias)
    slow = dt < 0.005
    fast = (dt > 0.02) & (dt < 0.1)
    power = dt * (layer.c_re.square() + layer.c_im.square())
    assert float(power[slow].mean() / power[fast].mean()) == pytest.approx(1.0, abs=0.4)


@pytest.mark.parametrize(
    "arguments",
    [
        {"freq_min": 0.0},
        {"freq_min": 0.3, "freq_max": 0.2},
        {"freq_max": 0.6},
        {"long_memory": 1.0},
    ],
)
def test_nuclear_init_refuses_impossible_ranges(arguments: dict[str, float]) -> None:
    layer = block()
    with pytest.raises(InvalidInputError):
        nuclear_init(layer, **arguments)


@pytest.mark.parametrize(
    "sizes", [{"d_inner": 65}, {"n_layers": 0}, {"conv_width": 1}, {"rank": 0}, {"d_mlp": -1}]
)
def test_impossible_sizes(sizes: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError) as error:
        KSSMConfig(**sizes)
    assert error.value.code == "invalid_config"


def test_state_is_two_numbers_a_channel_and_the_window() -> None:
    model = KSSM(KSSMConfig())
    floats = sum(math.prod(shape) for shape, _ in model.state_spec().values())
    assert floats == 8 * 320 * (2 + 3)
