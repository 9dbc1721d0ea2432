"""The audio experiment: baselines that are what they claim, and a run from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.audio import baselines, evaluate, train
from experiments.audio.corpora import SPEAKERS, from_mu_law, spoken_digits, to_mu_law
from experiments.audio.mixture import Mixture, Pool
from kssm import audio


def resonance(samples: int, seed: int = 0) -> np.ndarray:
    """An autoregressive process of order two whose best predictor has gain 1 / 0.19 or so."""
    noise = np.random.default_rng(seed).normal(size=samples)
    x = np.zeros(samples)
    for t in range(2, samples):
        x[t] = 1.5 * x[t - 1] - 0.9 * x[t - 2] + noise[t]
    return x


def test_backward_prediction_finds_the_predictor_and_never_looks_ahead() -> None:
    x = resonance(3000)
    guess = baselines.backward_lpc(x, 2, baselines.barnwell(400, 0.99), 10)
    error = (x - guess)[1000:]
    assert error.var() < 1.05
    changed = x.copy()
    changed[2000:] = 0.0
    other = baselines.backward_lpc(changed, 2, baselines.barnwell(400, 0.99), 10)
    np.testing.assert_allclose(other[:2001], guess[:2001])


def test_burg_and_extrapolation_continue_a_tone() -> None:
    time = np.arange(560)
    tone = np.sin(0.3 * time) + 0.5 * np.sin(0.71 * time + 1.0)
    past, future = tone[None, :400], tone[None, 400:]
    ahead = baselines.extrapolate(past, baselines.burg(past, 16), 160)
    assert evaluate.snr(future, ahead)["pooled"] > 30.0


def test_repetition_continues_a_period() -> None:
    tone = np.tile(np.random.default_rng(0).normal(size=53), 20)[None]
    ahead = baselines.repetition(tone[:, :800], 160, range(20, 161), 160)
    np.testing.assert_allclose(ahead, tone[:, 800:960])
    faded = baselines.repetition(tone[:, :800], 160, range(20, 161), 160, fade=0.2)
    np.testing.assert_allclose(faded[0, -1], ahead[0, -1] * (1 - 0.2 * 79 / 80))


def test_mu_law_keeps_what_matters() -> None:
    x = np.linspace(-1.0, 1.0, 1001, dtype=np.float32)
    again = from_mu_law(to_mu_law(x))
    assert np.abs(again - x).max() < 0.025
    assert np.abs(again - x)[np.abs(x) < 0.01].max() < 3e-4


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """Six speakers, one digit, six takes."""
    takes = [0.1 * resonance(2400, seed) for seed in range(36)]
    offsets = np.cumsum([0, *map(len, takes)])
    file = tmp_path / "digits.npz"
    np.savez(file, values=np.concatenate(takes).astype(np.float16), offsets=offsets)
    return file


def test_speakers_are_told_apart(digits: Path) -> None:
    assert len(spoken_digits(digits, SPEAKERS)) == 36
    lucas = spoken_digits(digits, ["lucas"])
    assert len(lucas) == 6
    np.testing.assert_allclose(lucas[0], 0.1 * resonance(2400, 12), atol=2e-3)


def test_batches_are_finite_and_fixed_by_the_seed(digits: Path) -> None:
    pool = Pool.of(spoken_digits(digits, ["george"]), 0, torch.device("cpu"))
    mixture = Mixture([(0.5, pool), (0.5, pool)])
    drawn = [mixture.draw(12, 1600, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert drawn[0].shape == (12, 1600)
    assert drawn[0].isfinite().all()
    assert torch.equal(*drawn)


def test_a_run_from_end_to_end(digits: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    torch.set_num_threads(1)
    output = tmp_path / "run"
    words = f"train --digits {digits} --output {output} --rows 3 --length 2000 --reads 2 --steps 2"
    monkeypatch.setattr("sys.argv", [*words.split(), "--device", "cpu"])
    train.main()
    assert json.loads((output / "run.json").read_text())["steps"] == 2
    scores = tmp_path / "scores.json"
    words = f"evaluate --digits {digits} --checkpoint {output} --output {scores} --stride 6"
    monkeypatch.setattr("sys.argv", words.split())
    monkeypatch.setattr(evaluate, "linear_gains", lambda *_: {})
    evaluate.main()
    report = json.loads(scores.read_text())["all"]
    assert report["recordings"] == 2
    assert 3.0 < report["one_ahead"]["ours"]["recordings"] < 12.0
    assert audio.load(output).config.sample_rate == 8000
    assert "Burg" in capsys.readouterr().out
