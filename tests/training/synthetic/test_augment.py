"""Each augmentation: nothing at probability 0, its effect at probability 1."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kssm.errors import InvalidInputError
from kssm.training.synthetic import AugmentationConfig, augment
from kssm.training.synthetic.sampler import Sampler

CHANGES = [
    augment.mixup,
    augment.stretch,
    augment.smooth,
    augment.flip_sign,
    augment.flip_time,
    augment.censor_above,
    augment.censor_below,
    augment.quantise,
    augment.outliers,
    augment.stuck,
    augment.dropouts,
    augment.offset,
]


@pytest.fixture
def rows() -> Sampler:
    return Sampler(80, 400, False, torch.Generator().manual_seed(0), torch.device("cpu"))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(80, 400, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("change", CHANGES)
def test_probability_zero_changes_nothing(change, rows: Sampler, x: Tensor) -> None:
    torch.testing.assert_close(change(rows, x, 0.0), x, atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("change", CHANGES)
def test_probability_one_changes_nearly_every_row(change, rows: Sampler, x: Tensor) -> None:
    changed = change(rows, x, 1.0)
    assert changed.shape == x.shape
    assert changed.dtype == torch.float32
    assert changed.isfinite().all()
    assert (changed != x).any(1).float().mean() > 0.7  # outliers are rare events


@pytest.mark.parametrize("change", CHANGES)
def test_probability_is_a_share_of_rows(change, x: Tensor) -> None:
    many = Sampler(1600, 400, False, torch.Generator().manual_seed(2), torch.device("cpu"))
    wide = x.repeat(20, 1)
    share = ((change(many, wide, 0.3) - wide).abs() > 1e-5).any(1).float().mean()
    assert 0.2 < share < 0.36


def test_flips(rows: Sampler, x: Tensor) -> None:
    assert torch.equal(augment.flip_sign(rows, x, 1.0), -x)
    assert torch.equal(augment.flip_time(rows, x, 1.0), x.flip(1))


def test_censoring_repeats_the_limit(rows: Sampler, x: Tensor) -> None:
    above = augment.censor_above(rows, x, 1.0)
    assert ((above == above.amax(1, keepdim=True)).sum(1) > 5).all()
    below = augment.censor_below(rows, x, 1.0)
    assert ((below == below.amin(1, keepdim=True)).sum(1) > 5).all()


def test_quantised_values_are_multiples_of_a_step(rows: Sampler, x: Tensor) -> None:
    quantised = augment.quantise(rows, x, 1.0).double()
    ordered = quantised.sort(dim=1).values.diff(dim=1)
    step = torch.where(ordered > 1e-4, ordered, torch.inf).amin(1, keepdim=True)
    distance = (quantised / step - (quantised / step).round()).abs() * step
    assert distance.max() < 2e-3


def test_smoothing_is_a_trailing_mean(rows: Sampler, x: Tensor) -> None:
    smoothed = augment.smooth(rows, x, 1.0)
    for row in range(10):
        means = [x[row, 100 - w : 100].mean() for w in augment.SMOOTHING_WIDTHS]
        nearest = min((smoothed[row, 99] - mean).abs().item() for mean in means)
        assert nearest < 1e-4
    torch.testing.assert_close(smoothed[:, 0], x[:, 0])


def test_stretching_slows_down(rows: Sampler) -> None:
    ramp = torch.arange(400.0).expand(80, -1)
    slope = augment.stretch(rows, ramp, 1.0)[:, -1] / 399.0
    assert (slope <= 1 / 1.5 + 1e-3).all()
    assert (slope >= 1 / 8.0 - 1e-3).all()


def test_stuck_sensors_repeat_their_last_value(rows: Sampler, x: Tensor) -> None:
    held = augment.stuck(rows, x, 1.0)
    repeats = held[:, 1:] == held[:, :-1]
    changed = held[:, 1:] != x[:, 1:]
    assert torch.equal(repeats, changed)


def test_dropouts_are_zeros(rows: Sampler, x: Tensor) -> None:
    lost = augment.dropouts(rows, x, 1.0)
    assert torch.equal(lost[lost != x], torch.zeros(int((lost != x).sum())))


def test_rows_that_touch_zero_stay_anchored(rows: Sampler, x: Tensor) -> None:
    config = AugmentationConfig(mixup=0.0, stretch=0.0, smooth=0.0, dropouts=0.0)
    counted = torch.relu(x).round()
    augmented = augment.augment(rows, counted, config)
    zeros = (augmented == 0.0).sum(1)
    assert torch.equal(zeros, (counted == 0.0).sum(1))


def test_final_scale_is_log_normal(rows: Sampler, x: Tensor) -> None:
    scaled = augment.augment(rows, x, AugmentationConfig())
    spread = scaled.std(1).log()
    assert spread.std().item() == pytest.approx(2.0, abs=0.5)


def test_config_refuses_impossible_probabilities() -> None:
    with pytest.raises(InvalidInputError, match="mixup") as caught:
        AugmentationConfig(mixup=1.5)
    assert caught.value.code == "invalid_config"
    with pytest.raises(InvalidInputError):
        AugmentationConfig(scale_deviation=float("nan"))
