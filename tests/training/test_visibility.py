"""Blind gaps, dropouts and irregular sampling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kssm.errors import InvalidInputError
from kssm.training.visibility import VisibilityConfig, thin, visibility_mask


def mask(count: int = 400, length: int = 2048, config: VisibilityConfig | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return visibility_mask(count, length, generator=generator, config=config)


def longest_gap(row: Tensor) -> int:
    edges = torch.nn.functional.pad((~row).int(), (1, 1)).diff()
    starts, ends = (edges == 1).nonzero(), (edges == -1).nonzero()
    return int((ends - starts).max()) if len(starts) else 0


def test_shape_and_first_sample() -> None:
    visible = mask()
    assert visible.shape == (400, 2048)
    assert visible.dtype == torch.bool
    assert visible[:, 0].all()
    assert torch.equal(visible, mask())


def test_shares_of_hidden_samples() -> None:
    visible = mask(2000)
    assert 0.85 < visible.float().mean() < 0.94
    assert 0.25 < visible.all(1).float().mean() < 0.5  # rows left whole


def test_gaps_are_long_but_bounded() -> None:
    config = VisibilityConfig(gap_probabilities=(1.0,), dropout_probability=0.0)
    visible = mask(300, config=config)
    gaps = torch.tensor([longest_gap(row) for row in visible])
    assert gaps.max() <= 900
    assert gaps.min() >= 1  # one that starts near the end is cut there
    assert (gaps > 450).float().mean() > 0.1
    assert visible[:, :204].all()


def test_gaps_of_short_series_leave_half_of_them() -> None:
    config = VisibilityConfig(gap_probabilities=(1.0,), dropout_probability=0.0)
    visible = mask(300, 100, config)
    assert (~visible).sum(1).max() <= 45


def test_dropouts_hide_single_samples() -> None:
    config = VisibilityConfig(
        gap_probabilities=(), dropout_probability=1.0, dropout_rates=(0.2, 0.2)
    )
    visible = mask(200, config=config)
    assert (~visible[:, 1:]).float().mean().item() == pytest.approx(0.2, abs=0.01)


def test_nothing_is_hidden_when_switched_off() -> None:
    assert mask(config=VisibilityConfig(gap_probabilities=(), dropout_probability=0.0)).all()


@pytest.mark.parametrize(
    "change", [{"gap_probabilities": (1.5,)}, {"gap_min": 0}, {"gap_max": 4}, {"first_start": -1.0}]
)
def test_impossible_settings_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        VisibilityConfig(**change)  # pyright: ignore[reportArgumentType]
    assert caught.value.code == "invalid_config"


def test_thinning_keeps_sorted_positions_from_the_first() -> None:
    generator = torch.Generator().manual_seed(1)
    sizes = set[int]()
    for _ in range(20):
        kept = thin(16, 300, generator=generator)
        assert kept.dtype == torch.int64
        assert kept.shape[0] == 16
        assert (kept[:, 0] == 0).all()
        assert (kept.diff(dim=1) > 0).all()
        assert kept.max() < 300
        sizes.add(kept.shape[1])
    assert len(sizes) > 10
    assert min(sizes) >= 150
    assert max(sizes) <= 285


def test_thinning_is_uniform_and_rows_differ() -> None:
    kept = thin(4000, 50, generator=torch.Generator().manual_seed(2), keep_range=(0.6, 0.6))
    counts = torch.bincount(kept.flatten(), minlength=50).float() / 4000
    assert kept.shape[1] == 30
    assert counts[0] == 1.0
    assert (counts[1:] - 29 / 49).abs().max() < 0.04
    assert not torch.equal(kept[0], kept[1])


def test_thinning_everything_or_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(
        thin(2, 10, generator=generator, keep_range=(1.0, 1.0)), torch.arange(10).expand(2, -1)
    )
    with pytest.raises(InvalidInputError):
        thin(2, 10, generator=generator, keep_range=(0.0, 0.5))


def test_slow_rows_show_every_kth_sample() -> None:
    config = VisibilityConfig(
        gap_probabilities=(), dropout_probability=0.0, slow_probability=0.5, slow_most=4
    )
    visible = mask(800, 240, config)[:, 12:]
    shares = visible.double().mean(1)
    assert 0.4 < (shares < 1.0).double().mean() < 0.6
    assert {round(float(share), 4) for share in shares} == {1.0, 0.5, 0.3333, 0.25}
    distances = {int(row.nonzero().diff(dim=0).unique()) for row in visible[shares < 1.0][:50]}
    assert distances == {2, 3, 4}


def test_slow_rows_lose_something() -> None:
    with pytest.raises(InvalidInputError):
        VisibilityConfig(slow_most=1)
