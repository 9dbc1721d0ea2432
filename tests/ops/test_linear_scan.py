"""The real linear recurrence against a plain loop and finite differences."""

from __future__ import annotations

import pytest
import torch

from kssm.errors import InvalidInputError
from kssm.ops.linear_scan import linear_scan


def loop(decay: torch.Tensor, value: torch.Tensor, initial: torch.Tensor | None) -> torch.Tensor:
    """h_t = decay_t h_{t-1} + value_t, one token after the other."""
    decay, value = torch.broadcast_tensors(decay, value)
    h = torch.zeros_like(value[:, 0]) if initial is None else initial
    states = []
    for t in range(value.shape[1]):
        h = decay[:, t] * h + value[:, t]
        states.append(h)
    return torch.stack(states, dim=1)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("tokens", [1, 2, 31, 32, 33, 63, 500, 1100])
@pytest.mark.usefixtures("poisoned")
def test_it_follows_the_recurrence(tokens, shape, initial):
    decay, value = draw(2, tokens, *shape).sigmoid(), draw(2, tokens, *shape, seed=1)
    start = draw(2, *shape, seed=2) if initial else None
    torch.testing.assert_close(
        linear_scan(decay, value, start), loop(decay, value, start), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("tokens", [1, 5, 70])
def test_gradients_match_finite_differences(tokens):
    decay = draw(1, tokens, 2).sigmoid().requires_grad_()
    value = draw(1, tokens, 2, seed=1).requires_grad_()
    start = draw(1, 2, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(linear_scan, (decay, value, start))


def test_decay_and_value_broadcast_with_gradients():
    decay = draw(2, 9, 3, 1).sigmoid().requires_grad_()
    value = draw(2, 9, 1, 4, seed=1).requires_grad_()
    torch.testing.assert_close(linear_scan(decay, value), loop(decay, value, None))
    assert torch.autograd.gradcheck(linear_scan, (decay, value))


def test_fp32_stays_fp32_and_close():
    decay, value = draw(2, 500, 3).sigmoid(), draw(2, 500, 3, seed=1)
    found = linear_scan(decay.float(), value.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), loop(decay, value, None), rtol=1e-5, atol=1e-5)


def test_a_prefix_does_not_depend_on_what_follows():
    decay, value = draw(2, 100, 4).sigmoid(), draw(2, 100, 4, seed=1)
    whole = linear_scan(decay, value)
    torch.testing.assert_close(linear_scan(decay[:, :45], value[:, :45]), whole[:, :45])


@pytest.mark.parametrize(
    ("decay", "value", "initial", "code"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(2, 3, 5), None, "wrong_shape"),
        (torch.zeros(2, 3), torch.zeros(2, 3, 5), None, "wrong_shape"),
        (torch.zeros(3), torch.zeros(3), None, "wrong_shape"),
        (torch.zeros(2, 0, 4), torch.zeros(2, 0, 4), None, "wrong_shape"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.zeros(3, 4), "wrong_shape"),
        (torch.zeros(2, 3, 4).double(), torch.zeros(2, 3, 4), None, "wrong_dtype"),
        (torch.zeros(2, 3, 4).long(), torch.zeros(2, 3, 4).long(), None, "wrong_dtype"),
    ],
)
def test_wrong_input_is_refused(decay, value, initial, code):
    with pytest.raises(InvalidInputError) as caught:
        linear_scan(decay, value, initial)
    assert caught.value.code == code
