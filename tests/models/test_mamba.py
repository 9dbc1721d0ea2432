"""Mamba against ``transformers`` on the same weights, and its own parts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kssm.checkpoint.mamba_names import MAMBA_NAMES
from kssm.errors import CheckpointError, InvalidInputError
from kssm.models.base import SequenceModel
from kssm.models.mamba import Mamba, MambaBlock, MambaConfig
from kssm.ops.selective_scan import selective_scan, selective_step
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
CONFIG = MambaConfig(d_model=WIDTH, n_layers=LAYERS, d_inner=32, d_state=8, rank=3)
Pair = tuple[SequenceModel, nn.Module]


@pytest.fixture(scope="module")
def pair() -> Pair:
    torch.manual_seed(0)
    peer = transformers()
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "state_size": 8, "vocab_size": 5}
    theirs = shaken(peer.MambaModel(peer.MambaConfig(**sizes, expand=2, time_step_rank=3)))
    return same_weights(Mamba(CONFIG), theirs, MAMBA_NAMES), theirs


@pytest.mark.parametrize("length", [1, 3, 40, 300])
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
    x = tokens(180, WIDTH)
    out = theirs(inputs_embeds=x[:, :150], use_cache=True)
    expected, cache = their_steps(theirs, x[:, 150:], out.cache_params)
    _, middle = ours(x[:, :150])
    for y, state in (our_steps(ours, x[:, 150:], middle), ours(x[:, 150:], state=middle)):
        assert relative_error(y, expected) <= TOLERANCE
        assert_same_states(state, cache)


def test_names_go_both_ways(pair: Pair) -> None:
    ours, theirs = pair
    expected = weights_of(theirs)
    saved = MAMBA_NAMES.save(ours.state_dict(), LAYERS)
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], expected[name]) for name in expected)


def test_every_name_that_does_not_fit_is_named() -> None:
    weights = MAMBA_NAMES.save(Mamba(CONFIG).state_dict(), LAYERS)
    weights["layers.7.mixer.D"] = weights.pop("layers.2.mixer.D")
    with pytest.raises(CheckpointError) as error:
        MAMBA_NAMES.load(weights, LAYERS)
    assert error.value.message == "missing layers.2.mixer.D; unexpected layers.7.mixer.D"


@pytest.mark.parametrize("length", [1, 31, 128, 129, 300])
def test_the_scan_is_the_recurrence(length: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, step = draw(2, length, 3), draw(2, length, 3).exp()
    a, b, c, h = -draw(3, 4).exp(), draw(2, length, 4), draw(2, length, 4), draw(2, 3, 4)
    y, end = selective_scan(x, step, a, b, c, h)
    for t in range(length):
        expected, h = selective_step(x[:, t], step[:, t], a, b[:, t], c[:, t], h)
        torch.testing.assert_close(y[:, t], expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(end, h, rtol=1e-11, atol=1e-11)


def test_gradients_of_pieces_are_those_of_the_whole() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 300, 2, dtype=torch.float64)
    step = torch.rand(1, 300, 2, dtype=torch.float64)
    a = -torch.rand(2, 3, dtype=torch.float64) - 0.1
    b, c = torch.randn(2, 1, 300, 3, dtype=torch.float64)
    start = torch.randn(1, 2, 3, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (x, step, a, b, c, start)]
    y, end = selective_scan(*inputs)
    pieces = torch.autograd.grad(y.square().sum() + end.sum(), inputs)

    h, outputs = start, []
    for t in range(300):
        out, h = selective_step(x[:, t], step[:, t], a, b[:, t], c[:, t], h)
        outputs.append(out)
    loss = torch.stack(outputs, dim=1).square().sum() + h.sum()
    for found, expected in zip(pieces, torch.autograd.grad(loss, inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_initial_steps_and_decays() -> None:
    torch.manual_seed(0)
    block = MambaBlock(MambaConfig(d_inner=4096, rank=4))
    step = nn.functional.softplus(block.dt_bias.double())
    assert 1e-3 * 0.999 < step.min() < 1.1e-3
    assert 0.09 < step.max() < 0.1 * 1.001
    torch.testing.assert_close(block.a_log.exp()[7], torch.arange(1.0, 17.0))


def test_autocast_keeps_the_state_in_fp32() -> None:
    torch.manual_seed(0)
    model = Mamba(CONFIG).requires_grad_(False)
    x = tokens(200, WIDTH)
    exact, _ = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = model(x)
    assert {entry.dtype for entry in state.values()} == {torch.float32}
    assert relative_error(y.float(), exact) < 0.03


def test_config_and_presets_are_checked() -> None:
    assert MambaConfig.preset("base") == MambaConfig()
    with pytest.raises(InvalidInputError) as error:
        MambaConfig.preset("huge")
    assert error.value.code == "unknown_preset"
    for wrong in ({"d_state": 0}, {"conv_width": 1}, {"rank": 0}):
        with pytest.raises(InvalidInputError) as error:
            MambaConfig(**wrong)
        assert error.value.code == "invalid_config"
