"""The plain layer: its two forms agree, and it fits into other networks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kssm.errors import InvalidInputError
from kssm.models import KSSMLayer

WIDTH = 12


def layer(dtype: torch.dtype = torch.float32) -> KSSMLayer:
    torch.manual_seed(0)
    return KSSMLayer(WIDTH, d_inner=16, rank=3, groups=2).to(dtype)


def tokens(length: int, dtype: torch.dtype = torch.float32) -> Tensor:
    make = torch.Generator().manual_seed(length)
    return torch.randn(3, length, WIDTH, generator=make, dtype=dtype)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("timed", [False, True])
def test_forward_equals_steps(dtype: torch.dtype, limit: float, timed: bool) -> None:
    net, x = layer(dtype).requires_grad_(False), tokens(50, dtype)
    make = torch.Generator().manual_seed(1)
    dt = 0.2 + torch.rand(3, 50, generator=make).to(dtype) if timed else None
    y, end = net(x, dt=dt)
    _, state = net(x[:, :20], dt=None if dt is None else dt[:, :20])
    for t in range(20, 50):
        out, state = net.step(x[:, t], state, None if dt is None else dt[:, t])
        assert float((out - y[:, t]).abs().max() / y.abs().max()) <= limit
    assert float((state - end).abs().max() / end.abs().max()) <= limit


def test_a_step_leaves_the_given_state_alone() -> None:
    net = layer()
    state = net.initial_state(3)
    net.step(tokens(1)[:, 0], state)
    assert torch.equal(state, net.initial_state(3))


def test_lengths_end_rows() -> None:
    net, x = layer(), tokens(9)
    _, state = net(x, lengths=torch.tensor([9, 0, 4]))
    assert torch.equal(state[1], net.initial_state(1)[0])
    assert torch.allclose(state[2], net(x[2:, :4])[1][0], atol=1e-6)


def test_it_learns_inside_a_network() -> None:
    """A delay of eight tokens cannot be learnt without memory."""
    torch.manual_seed(0)
    net = nn.ModuleList([nn.Linear(1, WIDTH), KSSMLayer(WIDTH), nn.Linear(WIDTH, 1)])
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    x = torch.randn(16, 64, 1).cumsum(1) * 0.2
    losses: list[float] = []
    for _ in range(60):
        y = net[2](net[1](net[0](x))[0])
        loss = (y[:, 8:] - x[:, :-8]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    plain = float((x[:, 8:] - x[:, :-8]).square().mean())
    assert losses[-1] < 0.5 * plain
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("sizes", [{"groups": 5}, {"rank": 0}, {"d_inner": 0}])
def test_sizes_are_checked(sizes: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError) as error:
        KSSMLayer(WIDTH, **sizes)
    assert error.value.code == "invalid_config"
