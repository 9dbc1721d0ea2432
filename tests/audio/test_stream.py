"""AudioStream, and checkpoints of audio forecasters on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.audio_concealment import conceal
from kssm import audio
from kssm.audio import AudioStream
from kssm.errors import CheckpointError, InvalidInputError
from kssm.loading import load_any
from tests.audio.support import sound, tiny_audio


def heard(samples: int, rows: int = 1) -> AudioStream:
    stream = AudioStream(tiny_audio(), rows)
    stream.push(sound(samples, rows).numpy())
    return stream


def test_scores_come_in_the_shape_of_the_samples() -> None:
    stream = AudioStream(tiny_audio(), 2)
    assert stream.push(sound(30, 2).numpy()).shape == (2, 30)
    assert AudioStream(tiny_audio()).push(np.zeros(7)).shape == (7,)
    assert stream.push(np.empty((2, 0))).shape == (2, 0)
    assert stream.forecast(12).shape == (2, 12, 3)


def test_concealing_is_pushing_nothing() -> None:
    streams = [heard(83, 2), heard(83, 2)]
    filling = streams[0].conceal(40)
    assert filling.shape == (2, 40)
    np.testing.assert_allclose(filling[:, :10], streams[1].conceal(10), atol=1e-5)
    for stream, left in zip(streams, (20, 50), strict=True):
        stream.push(np.full((2, left), np.nan))
    np.testing.assert_allclose(streams[0].forecast(9), streams[1].forecast(9), atol=1e-5)


def test_nothing_heard_is_concealed_by_silence() -> None:
    stream = AudioStream(tiny_audio())
    assert not stream.conceal(20).any()
    assert np.isnan(stream.forecast(5)).all()


def test_a_receiver_plays_every_packet() -> None:
    samples = sound(200)[0].numpy()
    packets = list(samples.reshape(10, 20))
    lost = [False] * 5 + [True, True] + [False] * 3
    played = list(conceal(AudioStream(tiny_audio()), packets, lost))
    assert [len(p) for p in played] == [20] * 10
    np.testing.assert_array_equal(np.concatenate(played[:5]), samples[:100])
    assert np.isfinite(played[5]).all()
    assert not np.array_equal(played[7], packets[7])
    np.testing.assert_array_equal(np.concatenate(played[8:]), samples[160:])


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda s: s.push(np.zeros((3, 4))), "wrong_shape"),
        (lambda s: s.push(np.zeros(())), "wrong_shape"),
        (lambda s: s.push([1.0, np.inf]), "non_finite_value"),
        (lambda s: s.push([1.0, 1e38]), "value_out_of_range"),
        (lambda s: s.push(["a"]), "wrong_dtype"),
        (lambda s: s.conceal(0), "invalid_horizon"),
        (lambda s: AudioStream(tiny_audio(), 0), "wrong_shape"),
    ],
)
def test_bad_input_has_a_code(call, code: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        call(AudioStream(tiny_audio()))
    assert caught.value.code == code


@pytest.mark.parametrize("half", [True, False])
def test_a_saved_forecaster_comes_back(tmp_path: Path, half: bool) -> None:
    model = tiny_audio()
    audio.save(model, tmp_path, half=half)
    again = load_any(tmp_path)
    assert isinstance(again, audio.AudioForecaster)
    assert again.config == model.config
    assert (again.fingerprint == model.fingerprint) is not half
    x = sound(60)
    tails = [m.prefill(x, m.initial_state(1)).tail for m in (model, again)]
    torch.testing.assert_close(*tails, atol=2e-2, rtol=2e-2, equal_nan=True)


def test_int8_weights_are_nearly_the_same(tmp_path: Path) -> None:
    audio.save(tiny_audio(), tmp_path, half=False)
    x = sound(60)
    models = [audio.load(tmp_path), audio.load(tmp_path, weights="int8")]
    tails = [m.prefill(x, m.initial_state(1)).tail for m in models]
    torch.testing.assert_close(*tails, atol=5e-2, rtol=5e-2, equal_nan=True)
    with pytest.raises(InvalidInputError):
        audio.load(tmp_path, weights="int3")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"patch": 7}, {"colour": 1}, {"backbone": {"d_model": "x"}}]
)
def test_malformed_configurations_are_refused(tmp_path: Path, change: dict) -> None:
    audio.save(tiny_audio(), tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError):
        audio.load(tmp_path)
