"""A part of the weights that stays in the cache: how much, and that no result changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kssm.forecast import SignalForecaster
from kssm.forecast.native import library, weights
from kssm.forecast.testing import tiny_forecaster
from kssm.quantization import FORMATS, WeightFormat, quantize
from tests.forecast.support import assert_same, needs_native, with_library

pytestmark = needs_native


def kept_by(model: SignalForecaster) -> int:
    found = model.native.usable(model)
    assert found is not None
    return found[1].sizes.kept


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the size of the second-level cache is read."""
    path = tmp_path / "size"
    monkeypatch.setattr(weights, "_CACHE", path)
    return path


def stepped(model: SignalForecaster, rows: int) -> tuple[dict[str, torch.Tensor], list[float]]:
    generator = torch.Generator().manual_seed(0)
    arena, slots = model.initial_state(rows + 1), torch.arange(rows) + 1
    tails = list[float]()
    for _ in range(20):
        values = torch.randn(rows, generator=generator).double()
        tails += model.step_(values, arena, slots).tail.nan_to_num(-1.0).tolist()
    return arena, tails


@pytest.mark.parametrize("chosen", FORMATS)
@pytest.mark.parametrize("rows", [1, 2, 3, 9])
def test_keeping_weights_changes_no_bit(
    compiled: library.Library, cache: Path, rows: int, chosen: WeightFormat
) -> None:
    model = tiny_forecaster()
    quantize(model, chosen)
    cache.write_text("1048576K")
    expected = stepped(with_library(model, compiled), rows)
    assert kept_by(model) == 0
    cache.write_text("12K")
    actual = stepped(with_library(model, compiled), rows)
    assert kept_by(model) == 2048
    assert_same(actual[0], expected[0])
    assert actual[1] == expected[1]


@pytest.mark.parametrize("text", [None, "", "12M", "-12K", "K"])
def test_nothing_is_kept_in_an_unknown_cache(
    compiled: library.Library, cache: Path, text: str | None
) -> None:
    if text is not None:
        cache.write_text(text)
    assert kept_by(with_library(tiny_forecaster(), compiled)) == 0


def test_nothing_is_kept_of_what_fits() -> None:
    assert weights.kept_bytes(2**21, 2**21) == 0
    assert weights.kept_bytes(2**21 + 1, 2**21) == 2**21 // 6
    assert weights.kept_bytes(2**21, 0) == 0
