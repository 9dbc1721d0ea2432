"""Gradients of pieces that are computed in one tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kssm.ops import joint
from tests.ops.kernels import draw


class InPlace(torch.autograd.Function):
    """Twice x; its gradient is written where it belongs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, place: joint.Place) -> Tensor:
        ctx.place = place
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor, None]:
        return ctx.place.memory().copy_(2 * incoming[0]), None


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "fuses", lambda _: True)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("used", [(0, 1, 2), (0, 2), (1,), (2,)])
def test_the_gradient_is_that_of_a_plain_split(used: tuple[int, ...]) -> None:
    x = draw(2, 3, 9, seed=1).requires_grad_()
    weights = [draw(2, 3, size, seed=size) for size in (4, 3, 2)]
    pieces, places = joint.split(x, (4, 3, 2))
    assert places[1] is not None
    results = [pieces[0].sin(), InPlace.apply(pieces[1], places[1]), pieces[2] * 3]
    plain = x.split((4, 3, 2), dim=-1)
    expected = [plain[0].sin(), 2 * plain[1], plain[2] * 3]
    chosen = [[all_of[i] for i in used] for all_of in (results, expected, weights)]
    for _ in range(2):
        found = torch.autograd.grad(chosen[0], x, chosen[2], retain_graph=True)[0]
        right = torch.autograd.grad(chosen[1], x, chosen[2], retain_graph=True)[0]
        assert torch.equal(found, right)


def test_what_is_written_in_place_is_not_copied() -> None:
    x = draw(4, 6, seed=1).requires_grad_()
    pieces, places = joint.split(x, (2, 4))
    assert places[1] is not None
    seen: list[int] = []
    pieces[1].register_hook(lambda dy: seen.append(dy.data_ptr()))
    whole = torch.autograd.grad(InPlace.apply(pieces[1], places[1]).sum(), x)[0]
    assert seen == [whole[:, 2:].data_ptr()]


def test_a_piece_with_two_uses_adds_both_gradients() -> None:
    x = draw(4, 6, seed=1).requires_grad_()
    pieces, places = joint.split(x, (2, 4))
    assert places[1] is not None
    total = InPlace.apply(pieces[1], places[1]).sum() + (5 * pieces[1]).sum()
    whole = torch.autograd.grad(total, x)[0]
    assert torch.equal(whole, torch.tensor([0.0, 0, 7, 7, 7, 7]).expand(4, 6))


def test_without_a_gradient_there_is_nothing_to_gain() -> None:
    x = draw(4, 6, seed=1)
    assert joint.split(x, (2, 4))[1] == [None, None]
    with torch.no_grad():
        assert joint.split(x.requires_grad_(), (2, 4))[1] == [None, None]
