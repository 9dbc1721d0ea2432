"""Mamba-2 against ``transformers`` on the same weights, and its own parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kssm.checkpoint.mamba_names import MAMBA2_NAMES
from kssm.errors import InvalidInputError
from kssm.models.base import SequenceModel
from kssm.models.mamba2 import Mamba2, Mamba2Config
from kssm.ops.ssd import ssd_scan, ssd_step
from tests.models.peers import (
    LAYERS,
    ROWS,
    TOLERANCE,
    assert_same_states,
    our_steps,
    relative_error,
    same_weights,
    shaken,
    their_steps,
    tokens,
    transformers,
    weights_of,
)

WIDTH = 16
SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "state_size": 8,
    "vocab_size": 5,
    "expand": 2,
    "num_heads": 4,
    "head_dim": 8,
    "chunk_size": 32,
}
Pair = tuple[SequenceModel, nn.Module]


def config(groups: int) -> Mamba2Config:
    return Mamba2Config(WIDTH, LAYERS, d_inner=32, head_dim=8, d_state=8, groups=groups)


@pytest.fixture(scope="module", params=[1, 2])
def pair(request: pytest.FixtureRequest) -> Pair:
    torch.manual_seed(0)
    peer = transformers()
    theirs = shaken(peer.Mamba2Model(peer.Mamba2Config(**SIZES, n_groups=request.param)))
    return same_weights(Mamba2(config(request.param)), theirs, MAMBA2_NAMES), theirs


@pytest.mark.parametrize("length", [1, 3, 64, 300])
def test_forward_agrees_with_transformers(pair: Pair, length: int) -> None:
    ours, theirs = pair
    x = tokens(length, WIDTH)
    y, state = ours(x)
    out = theirs(inputs_embeds=x, use_cache=True)
    assert relative_error(y, out.last_hidden_state) <= TOLERANCE
    assert_same_states(state, out.cache_params)


def test_steps_agree_with_transformers(pair: Pair) -> None:
    ours, theirs = pair
    x = tokens(60, WIDTH)
    expected, cache = their_steps(theirs, x, None)
    y, state = our_steps(ours, x, ours.initial_state(ROWS))
    assert relative_error(y, expected) <= TOLERANCE
    assert_same_states(state, cache)


def test_steps_and_forward_after_a_prefix_agree_with_transformers(pair: Pair) -> None:
    ours, theirs = pair
    x = tokens(230, WIDTH)
    out = theirs(inputs_embeds=x[:, :150], use_cache=True)
    expected, cache = their_steps(theirs, x[:, 150:], out.cache_params)
    _, middle = ours(x[:, :150])
    for y, state in (our_steps(ours, x[:, 150:], middle), ours(x[:, 150:], state=middle)):
        assert relative_error(y, expected) <= TOLERANCE
        assert_same_states(state, cache)


def test_names_go_both_ways(pair: Pair) -> None:
    ours, theirs = pair
    expected = weights_of(theirs)
    saved = MAMBA2_NAMES.save(ours.state_dict(), LAYERS)
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], expected[name]) for name in expected)


def problem(length: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x, step, a, b, c and state of 4 heads in 2 groups."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, length, 4, 3), (2, length, 4), (4,), *[(2, length, 2, 5)] * 2, (2, 4, 3, 5))
    x, step, a, b, c, h = (torch.randn(s, generator=generator, dtype=dtype) for s in shapes)
    return [x, step.exp(), -a.exp(), b, c, h]


def loop(
    x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor
) -> tuple[Tensor, Tensor]:
    outputs: list[Tensor] = []
    for t in range(x.shape[1]):
        y, h = ssd_step(x[:, t], step[:, t], a, b[:, t], c[:, t], h)
        outputs.append(y)
    return torch.stack(outputs, dim=1), h


@pytest.mark.parametrize("length", [1, 63, 64, 65, 300, 1100])
def test_the_scan_is_the_recurrence(length: int) -> None:
    inputs = problem(length)
    for found, expected in zip(ssd_scan(*inputs), loop(*inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_gradients_are_those_of_the_recurrence() -> None:
    inputs = [entry.requires_grad_() for entry in problem(1100)]
    gradients: list[tuple[Tensor, ...]] = []
    for scan in (ssd_scan, loop):
        y, end = scan(*inputs)
        gradients.append(torch.autograd.grad(y.square().sum() + end.sum(), inputs))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_strong_decays_do_not_blur_weak_ones_behind_them() -> None:
    x, step, a, b, c, h = problem(64, torch.float32)
    step = step * 1e-2
    step[:, 5] = 3e4
    y, end = ssd_scan(x, step, a, b, c, h)
    exact, last = loop(*(entry.double() for entry in (x, step, a, b, c, h)))
    assert relative_error(y[:, 6:], exact[:, 6:].float()) < 1e-5
    assert relative_error(end, last.float()) < 1e-5


def test_autocast_keeps_decays_and_state_in_fp32() -> None:
    torch.manual_seed(0)
    model = Mamba2(config(2)).requires_grad_(False)
    x = tokens(200, WIDTH)
    exact, _ = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = model(x)
    assert {entry.dtype for entry in state.values()} == {torch.float32}
    assert relative_error(y.float(), exact) < 0.03


@pytest.mark.parametrize(
    "wrong",
    [{"d_state": 0}, {"conv_width": 1}, {"head_dim": 48}, {"groups": 3}, {"n_layers": 0}],
)
def test_config_is_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError) as error:
        Mamba2Config(**wrong)
    assert error.value.code == "invalid_config"
