"""Spectra against what the models' own states do."""

from __future__ import annotations

import math

import pytest
import torch

from kssm.models import (
    KSSM,
    RWKV4,
    RWKV6,
    S4D,
    KSSMConfig,
    Mamba,
    Mamba2,
    Mamba2Config,
    MambaConfig,
    RWKV4Config,
    RWKV6Config,
    S4DConfig,
    Transformer,
    TransformerConfig,
)
from kssm.models.kssm_matrix import KSSMMatrix, KSSMMatrixConfig
from kssm.models.spectrum import spectra
from kssm.models.stack import Stack


def stacks() -> list[Stack]:
    torch.manual_seed(0)
    return [
        KSSM(KSSMConfig(d_model=16, n_layers=2, d_inner=32, d_mlp=0, rank=4, group_size=16)),
        Mamba(MambaConfig(d_model=16, n_layers=2, d_inner=24, d_state=5, rank=3)),
        Mamba2(Mamba2Config(d_model=16, n_layers=2, d_inner=24, head_dim=6, d_state=5)),
        RWKV6(RWKV6Config(d_model=16, n_layers=2, head_size=4, d_ffn=24)),
        S4D(S4DConfig(d_model=16, n_layers=2, d_state=5, d_mlp=0)),
        KSSMMatrix(
            KSSMMatrixConfig(
                d_model=16, n_layers=2, d_inner=24, head_dim=6, pairs=5, groups=2, d_mlp=0
            )
        ),
    ]


@pytest.mark.parametrize("index", range(6))
def test_states_fade_and_turn_as_the_spectrum_says(index: int) -> None:
    """A state left alone (tokens of zeros) is multiplied by the eigenvalues."""
    net = stacks()[index].double().eval().requires_grad_(False)
    steps = 20
    x = torch.zeros(1, steps, 16, dtype=torch.float64)
    start = net.initial_state(1)
    make = torch.Generator().manual_seed(0)
    name = "layers.0.state"
    start[name] = torch.randn(start[name].shape, generator=make, dtype=torch.float64)
    _, end = net(x, start)
    layer = spectra(net)[0]
    before, after = start[name][0], end[name][0]
    if isinstance(net, KSSM | S4D | KSSMMatrix):
        old, new = torch.view_as_complex(before), torch.view_as_complex(after)
        ratio = new / old
        if isinstance(net, KSSMMatrix):
            assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio))
            ratio = ratio[:, 0]
        ratio = ratio.flatten()
        # KSSM's pair turns the other way round: only the size of the angle is told.
        expected = torch.polar(layer.log_radius.mul(steps).exp(), torch.zeros_like(layer.angle))
        assert torch.allclose(ratio.abs(), expected.abs(), rtol=1e-6)
        turned = (layer.angle * steps) % 1
        found = ratio.angle().abs() / (2 * math.pi)
        assert torch.allclose(found, torch.minimum(turned, 1 - turned), atol=1e-6)
    else:
        ratio = after / before
        per_mode = layer.log_radius.mul(steps).exp()
        shape = {Mamba: (24, 5), Mamba2: (4, 1, 1), RWKV6: (4, 4, 1)}[type(net)]
        assert torch.allclose(ratio, per_mode.view(shape).expand_as(ratio), rtol=1e-6)


def test_time_constants() -> None:
    layer = spectra(stacks()[0])[0]
    assert torch.allclose(torch.exp(-1 / layer.time_constants), layer.log_radius.exp())
    assert 0.99 < layer.radius <= 1
    assert float(layer.angle.max()) <= 0.5


def test_a_mode_that_never_fades_lasts_for_ever() -> None:
    net = stacks()[0]
    with torch.no_grad():
        net.get_parameter("blocks.0.alpha_bias").fill_(-200.0)
    layer = spectra(net)[0]
    assert layer.radius == 1.0
    assert layer.time_constants.min() > 1e30


def test_attention_has_a_window_instead() -> None:
    config = TransformerConfig(
        d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, head_size=4, d_mlp=8, window=9
    )
    first, second = spectra(Transformer(config))
    assert (first.window, second.window) == (9, 9)
    assert len(first.log_radius) == 0
    assert first.radius == 0.0


def test_rwkv4_forgets_at_its_rates() -> None:
    torch.manual_seed(0)
    net = RWKV4(RWKV4Config(d_model=8, n_layers=2, d_inner=6, d_ffn=8))
    layer = spectra(net)[1]
    rates = net.get_parameter("blocks.1.decay").exp().double()
    assert torch.allclose(layer.time_constants, 1 / rates)
    assert (layer.kind, layer.radius < 1) == ("rwkv4", True)
