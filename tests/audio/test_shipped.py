"""The shipped checkpoint on synthetic voices that no one has heard."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from experiments.audio import baselines
from experiments.audio.evaluate import gains, model_guesses, snr
from kssm import audio
from kssm.forecast.pretrained import available, locate
from kssm.training.synthetic import Sampler
from kssm.training.synthetic.voices import voice


@pytest.fixture(scope="module")
def voices() -> list[np.ndarray]:
    generator = torch.Generator().manual_seed(99)
    spoken = voice(Sampler(6, 8000, False, generator, torch.device("cpu")))
    return list(spoken.double().numpy())


def test_it_is_found_by_its_name() -> None:
    assert "kssm-audio" in available()
    assert sum(file.stat().st_size for file in locate("kssm-audio").iterdir()) < 4.2e6
    assert audio.AudioStream.from_pretrained().sample_rate == 8000


def test_it_predicts_better_than_linear_prediction_and_fills_gaps(voices) -> None:
    model = audio.load()
    starts = np.arange(800, 7600, 400)
    window = baselines.barnwell(400, 0.98)
    ours = [model_guesses(model, x, starts) for x in voices]
    linear = [baselines.backward_lpc(x, 16, window, 10) for x in voices]
    gain, other = gains(voices, [r[0] for r in ours]), gains(voices, linear)
    assert gain["recordings"] > other["recordings"] + 0.5
    assert gain["frames"] > other["frames"] + 0.5
    truth = np.stack([x[t : t + 160] for x in voices for t in starts])
    past = np.stack([x[t - 800 : t] for x in voices for t in starts])
    filled = np.concatenate([r[2][:, :160] for r in ours])
    repeated = baselines.repetition(past, 160, range(20, 161), 160)
    assert snr(truth, filled)["mean"] > max(0.5, snr(truth, repeated)["mean"] + 1.0)
    assert snr(truth, filled)["pooled"] > 0.0
