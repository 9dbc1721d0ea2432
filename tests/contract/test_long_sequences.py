"""Errors must not add up: thousands of tokens at once, in pieces and one by one end alike."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kssm.models import SequenceModel
from tests.contract.builders import (
    BUILDERS,
    DEVICES,
    arena_of,
    assert_close,
    assert_states_close,
    run_steps,
    s4d_bilinear,
    s4d_model,
)

LENGTH, TAIL = 4096, 8


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


def tokens(model: SequenceModel, device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, LENGTH, model.d_model, generator=generator).to(device)


@pytest.mark.parametrize("build", BUILDERS)
def test_pieces_and_steps_end_where_the_whole_does(
    build: Callable[[], SequenceModel], device: str
) -> None:
    torch.manual_seed(0)
    model = build().eval().requires_grad_(False).to(device)
    x = tokens(model, device)
    y, end = model(x)
    state, outputs = None, []
    for piece in x[:, :-TAIL].split(1000, dim=1):
        part, state = model(piece, state)
        outputs.append(part)
    assert state is not None
    slots = torch.tensor([3], device=device)
    arena = arena_of(model, state, slots)
    outputs.append(run_steps(model, x[:, -TAIL:], arena, slots))
    assert_close(torch.cat(outputs, dim=1), y)
    assert_states_close({name: entry[slots] for name, entry in arena.items()}, end)


@pytest.mark.parametrize("build", [s4d_model, s4d_bilinear])
@pytest.mark.parametrize("step", [None, 1.7])
def test_s4d_does_not_drift(
    build: Callable[[], SequenceModel], step: float | None, device: str
) -> None:
    torch.manual_seed(0)
    model = build().eval().requires_grad_(False).to(device)
    x = tokens(model, device)
    dt = None if step is None else torch.full((1, LENGTH), step, device=device)
    y, end = model(x, dt=dt)
    slots = torch.tensor([2], device=device)
    arena = arena_of(model, model.initial_state(1), slots)
    assert_close(run_steps(model, x, arena, slots, dt), y)
    assert_states_close({name: entry[slots] for name, entry in arena.items()}, end)
