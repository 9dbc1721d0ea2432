"""The filtered tokens: kernels against float64, pieces, windows and their continuation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kssm.ops import joint
from kssm.ops.conv_silu import conv_silu, filtered, window_after
from tests.ops.kernels import DEVICE, ON_GPU, draw, worst

launch = pytest.importorskip("kssm.ops.conv_silu.kernel_launch")

SIZES = (40, 16, 5)
WIDTH = sum(SIZES)

CASES = [(1, 2, True), (3, 4, True), (7, 3, False), (10, 4, False), (19, 4, True), (18, 2, True)]


@pytest.fixture(autouse=True)
def short_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several spans in a few tokens, where tokens are slow."""
    if not ON_GPU:
        monkeypatch.setattr(launch, "FORWARD", launch.Cut(4, 32, 1))
        monkeypatch.setattr(launch, "BACKWARD", launch.Cut(8, 32, 1))


def leaves(tokens: int, taps: int, *, window: bool, dtype: torch.dtype) -> list[Tensor | None]:
    """A projection wider than the channels [2, T, C + 11], taps, bias and window."""
    device = "cpu" if dtype == torch.float64 else DEVICE
    shapes = [(2, tokens, WIDTH + 11), (taps, WIDTH), (WIDTH,)]
    shapes += [(2, taps - 1, WIDTH)] if window else []
    drawn = [
        draw(*shape, seed=i).to(device, dtype).requires_grad_() for i, shape in enumerate(shapes)
    ]
    return [*drawn, *[None] * (4 - len(drawn))]


def results(
    pieces: tuple[Tensor, ...], inputs: list[Tensor | None], unused: int | None = None
) -> list[Tensor]:
    """The pieces and all gradients of a weighted sum of them, without the one at ``unused``."""
    used = [p for i, p in enumerate(pieces) if i != unused]
    weights = [draw(*p.shape, seed=90 + i).to(p) for i, p in enumerate(used)]
    given = [t for t in inputs if t is not None]
    return [*pieces, *torch.autograd.grad(used, given, weights)]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("tokens", "taps", "window"), CASES)
def test_kernels_agree_with_float64(tokens: int, taps: int, window: bool) -> None:
    wide, weight, bias, before = low = leaves(tokens, taps, window=window, dtype=torch.float32)
    assert wide is not None
    found = results(
        launch.conv_silu_triton(wide[..., 4 : 4 + WIDTH], weight, bias, before, SIZES), low
    )
    wide, weight, bias, before = high = leaves(tokens, taps, window=window, dtype=torch.float64)
    assert wide is not None
    assert weight is not None
    assert bias is not None
    y = F.silu(filtered(wide[..., 4 : 4 + WIDTH], weight, bias, before))
    first, *rest = y.split(SIZES, dim=-1)
    for a, b in zip(found, results((first, first, *rest), high), strict=True):
        assert worst(a, b) < 1e-6


@pytest.mark.parametrize("unused", [0, 1, 2])
def test_pieces_without_a_use_add_nothing_to_the_gradients(unused: int) -> None:
    pieces = []
    for dtype in (torch.float32, torch.float64):
        wide, weight, bias, before = inputs = leaves(9, 4, window=True, dtype=dtype)
        assert wide is not None
        run = launch.conv_silu_triton if dtype == torch.float32 else conv_silu
        y = run(wide[..., :WIDTH], weight, bias, before, SIZES)
        pieces.append(results(y, inputs, unused))
    for a, b in zip(*pieces, strict=True):
        assert worst(a, b) < 1e-6


def test_bfloat16_is_rounded_once() -> None:
    wide, weight, bias, _ = leaves(70, 4, window=False, dtype=torch.float32)
    assert wide is not None
    assert weight is not None
    assert bias is not None
    x, taps, offset = (t.detach().bfloat16() for t in (wide[..., :WIDTH], weight, bias))
    y = torch.cat(launch.conv_silu_triton(x, taps, offset, None, SIZES)[1:], dim=-1)
    expected = F.silu(filtered(x.double(), taps.double(), offset.double(), None))
    assert y.dtype == torch.bfloat16
    assert worst(y, expected.cpu()) < 2**-7  # the interpreter cuts off instead of rounding


def test_a_sequence_cut_in_two_gives_the_same_tokens() -> None:
    wide, weight, bias, window = leaves(26, 4, window=True, dtype=torch.float32)
    assert wide is not None
    with torch.no_grad():
        x = wide[..., :WIDTH]
        whole = launch.conv_silu_triton(x, weight, bias, window, (WIDTH,))[0]
        for cut in (1, 3, 13):
            between = window_after(x[:, :cut], window, 3, None)
            pieces = ((x[:, :cut], window), (x[:, cut:], between))
            parts = [
                launch.conv_silu_triton(part, weight, bias, before, (WIDTH,))[0]
                for part, before in pieces
            ]
            assert torch.equal(torch.cat(parts, dim=1), whole)


def test_the_gradient_goes_where_it_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "fuses", lambda _: True)
    wide, weight, bias, window = leaves(9, 4, window=True, dtype=torch.float32)
    assert wide is not None
    (_, x, _), places = joint.split(wide, (4, WIDTH, 7))
    pieces = launch.conv_silu_triton(x, weight, bias, window, SIZES, places[1])
    found = torch.autograd.grad([p.sum() for p in pieces], wide)[0]
    pieces = launch.conv_silu_triton(wide[..., 4 : 4 + WIDTH], weight, bias, window, SIZES)
    assert torch.equal(found, torch.autograd.grad([p.sum() for p in pieces], wide)[0])


@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 8])
@pytest.mark.parametrize("given", [True, False])
def test_window_after_holds_the_last_valid_tokens(tokens: int, given: bool) -> None:
    x, window = draw(4, tokens, 3, seed=1), draw(4, 3, 3, seed=2)
    before = window if given else torch.zeros_like(window)
    everything = torch.cat([before, x], dim=1)
    after = window_after(x, window if given else None, 3, None)
    assert torch.equal(after, everything[:, tokens:])
    lengths = torch.tensor([0, min(1, tokens), min(2, tokens), tokens])
    after = window_after(x, window if given else None, 3, lengths)
    for row, length in enumerate(lengths.tolist()):
        assert torch.equal(after[row], everything[row, length : length + 3])
