"""The short programs run as their docstrings say, the networked ones against a real server."""

from __future__ import annotations

import math
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from examples import (
    audio_concealment,
    language_model,
    library_stream,
    rest_batch,
    websocket_stream,
)
from tests.end_to_end.live import Live, thread_server

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with thread_server() as found:
        yield found


def test_many_series_with_one_request(live: Live, capsys: Captured) -> None:
    rest_batch.main(live.http)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].strip() for line in lines] == ["short", "medium", "long"]
    for line in lines:
        past, ahead = line.split(": ")[1].split(" → ")
        assert (len(past), len(ahead)) == (rest_batch.HORIZON, rest_batch.HORIZON)


def test_a_stream_of_plain_json(live: Live, capsys: Captured) -> None:
    websocket_stream.main(live.http.removeprefix("http://"))
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split(":")[0]) for line in lines] == list(range(100))
    assert f"{math.sin(99 / 5):6.3f}, next " in lines[-1]


def test_a_stream_without_a_server_sees_the_jump(capsys: Captured) -> None:
    library_stream.main()
    lines = capsys.readouterr().out.splitlines()
    scores = {line.split(":")[0]: float(line.split("score")[1].split(")")[0]) for line in lines}
    assert scores["hour 200"] > 3
    assert {f"hour {hour:3d}" for hour in range(0, 240, 24)} <= scores.keys()


def test_a_language_model_learns_and_writes(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_model, "STEPS", 6)
    monkeypatch.setattr(language_model, "ROWS", 2)
    language_model.main()
    first, last, text = capsys.readouterr().out.split("\n", 2)
    assert first.startswith("step 0: ")
    assert float(last.split()[2]) < float(first.split()[2])
    assert len(text) == 201


def test_lost_packets_are_filled(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, played = tmp_path / "heard.wav", tmp_path / "played.wav"
    audio_concealment.write(str(heard), 0.3 * np.sin(np.arange(4000) / 20), 8000)
    monkeypatch.setattr("sys.argv", ["x", str(heard), str(played), "--loss", "0.2"])
    audio_concealment.main()
    told = capsys.readouterr().out
    assert "packets lost" in told
    assert float(told.split("gaps ")[1].split(" dB")[0]) > 3
    with wave.open(str(played)) as file:
        assert file.getnframes() == 4000
