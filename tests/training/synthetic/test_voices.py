"""Voices and notes: finite, repeatable, voiced where they should be."""

from __future__ import annotations

import pytest
import torch

from kssm.training.synthetic import Sampler
from kssm.training.synthetic.voices import notes, resonators, sounds, voice


def sampler(rows: int, length: int, seed: int = 0) -> Sampler:
    generator = torch.Generator().manual_seed(seed)
    return Sampler(rows, length, False, generator, torch.device("cpu"))


@pytest.mark.parametrize("family", [voice, notes, sounds])
@pytest.mark.parametrize("length", [50, 1000])
def test_rows_are_finite_and_fixed_by_the_seed(family, length: int) -> None:
    x = family(sampler(6, length))
    assert x.shape == (6, length)
    assert x.isfinite().all()
    assert torch.equal(x, family(sampler(6, length)))
    assert not torch.equal(x, family(sampler(6, length, seed=1)))


def test_sounds_are_of_one_loudness() -> None:
    level = sounds(sampler(16, 2000)).square().mean(1).sqrt()
    torch.testing.assert_close(level, torch.ones(16), atol=0.01, rtol=0.0)


def test_voices_repeat_themselves() -> None:
    """The likeness with an earlier period is far above that of noise (about 0.2) in most rows."""
    x = voice(sampler(24, 4000))[:, 2000:3000]
    lags = range(20, 161)
    likeness = torch.stack(
        [torch.cosine_similarity(x[:, 160:], x[:, 160 - lag : -lag], dim=1) for lag in lags]
    )
    assert (likeness.amax(0) > 0.5).float().mean() > 0.6


def test_resonators_are_causal_and_mild() -> None:
    response = resonators(sampler(32, 256), 0.7)
    impulse = torch.fft.irfft(response, 512)
    assert impulse[:, 256:].abs().max() < 1e-3
    torch.testing.assert_close(impulse[:, 0], torch.ones(32), atol=1e-3, rtol=0.0)
