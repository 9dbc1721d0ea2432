"""A call over the service: packets as frames, one of them lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kssm import audio
from service.core import build_engine
from service.settings import Settings
from tests.audio.support import sound, tiny_audio
from tests.service.rest import connect, create, serve

PACKET = 20


async def test_packets_are_answered_with_forecasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KSSM_STORE", "memory")
    audio.save(tiny_audio(), tmp_path)
    settings = Settings(model=str(tmp_path), device="cpu")
    packets: list[list[list[float | None]]] = sound(6 * PACKET)[0].reshape(6, PACKET, 1).tolist()
    packets[4] = [[None]] * PACKET
    async with serve(settings, build_engine(settings)) as app, connect(app) as client:
        session = await create(client, horizon=PACKET, quantiles=[0.5])
        answers: list[list[float]] = []
        for seq, packet in enumerate(packets):
            frame = {"seq": seq, "values": packet}
            reply = await client.post(f"/v1/sessions/{session}/frames", json=frame)
            assert reply.status_code == 200, reply.text
            answers.append(reply.json()["quantiles"]["0.5"][0])
    model = audio.load(tmp_path)
    values = np.array(packets, dtype=np.float64)[:5].reshape(1, -1)
    stream = audio.AudioStream(model)
    stream.push(values[0])
    np.testing.assert_allclose(answers[4], stream.forecast(PACKET, (0.5,))[0, :, 0], atol=1e-4)
    assert np.isfinite(answers).all()
