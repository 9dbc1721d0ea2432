"""``generate``: determinism, shares, finiteness."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kssm.errors import InvalidInputError
from kssm.training.synthetic import (
    FAMILIES,
    AugmentationConfig,
    FamilyWeights,
    SyntheticConfig,
    generate,
)
from tests.training.synthetic.spectrum import power_spectrum

PLAIN = AugmentationConfig(**dict.fromkeys(AugmentationConfig.__dataclass_fields__, 0.0))


def only(**weights: float) -> FamilyWeights:
    return FamilyWeights(**(dict.fromkeys(FAMILIES, 0.0) | weights))


def drawn(config: SyntheticConfig, count: int, length: int, seed: int = 0) -> Tensor:
    return generate(config, count, length, generator=torch.Generator().manual_seed(seed))


def test_weights_name_every_family() -> None:
    assert set(FamilyWeights().as_dict()) == set(FAMILIES)


@pytest.mark.parametrize("length", [256, 1024])
def test_same_seed_same_series(length: int) -> None:
    config = SyntheticConfig()
    first = drawn(config, 48, length, seed=3)
    assert first.shape == (48, length)
    assert first.dtype == torch.float32
    assert first.isfinite().all()
    assert torch.equal(first, drawn(config, 48, length, seed=3))
    assert not torch.equal(first, drawn(config, 48, length, seed=4))


def test_global_random_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    drawn(SyntheticConfig(), 8, 128)
    assert torch.equal(before, torch.random.get_rng_state())


def test_successive_calls_differ() -> None:
    generator = torch.Generator().manual_seed(0)
    first = generate(SyntheticConfig(), 8, 128, generator=generator)
    assert not torch.equal(first, generate(SyntheticConfig(), 8, 128, generator=generator))


@given(count=st.integers(1, 40), length=st.integers(32, 700), seed=st.integers(0, 2**31))
@settings(max_examples=12, deadline=None)
def test_any_shape_is_finite(count: int, length: int, seed: int) -> None:
    x = drawn(SyntheticConfig(), count, length, seed)
    assert x.shape == (count, length)
    assert x.isfinite().all()


def test_family_shares_follow_the_weights() -> None:
    weights = only(counts=0.25, composed=0.75)
    x = drawn(SyntheticConfig(weights=weights, augmentation=PLAIN), 400, 600)
    anchored = (x == 0.0).any(1).float().mean()
    assert 0.15 < anchored < 0.27


def test_families_are_interleaved() -> None:
    weights = only(counts=0.5, composed=0.5)
    x = drawn(SyntheticConfig(weights=weights, augmentation=PLAIN), 400, 600)
    anchored = (x == 0.0).any(1).float()
    assert (anchored[:200].mean() - anchored[200:].mean()).abs() < 0.15


def test_regime_depends_on_the_length() -> None:
    config = SyntheticConfig(weights=only(counts=1.0), short_weights=only(growth=1.0))
    config = SyntheticConfig(config.weights, config.short_weights, PLAIN, short_length=256)
    assert (drawn(config, 20, 257) == 0.0).any(1).float().mean() > 0.5
    smooth = drawn(config, 20, 256)
    assert (smooth.diff(dim=1).std(1) < 0.6 * smooth.std(1)).float().mean() > 0.7


def test_a_decent_share_is_slow_and_clean() -> None:
    """Long horizons at high frequency need signals whose power lies at long periods."""
    x = drawn(SyntheticConfig(), 400, 2048)
    spectrum = power_spectrum(x)[:, 1:]
    slow = spectrum[:, : 2048 // 96].sum(1) / spectrum.sum(1)
    assert 0.15 < (slow > 0.9).float().mean() < 0.5


@pytest.mark.parametrize(("count", "length"), [(0, 100), (4, 31), (-1, 64)])
def test_impossible_shapes_are_refused(count: int, length: int) -> None:
    with pytest.raises(InvalidInputError) as caught:
        drawn(SyntheticConfig(), count, length)
    assert caught.value.code == "invalid_config"


@pytest.mark.parametrize("weights", [{"structural": -1.0}, {"calendar": float("nan")}])
def test_impossible_weights_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError):
        FamilyWeights(**weights)
    with pytest.raises(InvalidInputError):
        only()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_is_deterministic_and_never_waits() -> None:
    device = torch.device("cuda")

    def draw() -> Tensor:
        generator = torch.Generator(device=device).manual_seed(5)
        return generate(SyntheticConfig(), 64, 1024, generator=generator, device=device)

    first = draw()
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = draw()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(first, again)
    assert first.isfinite().all()
