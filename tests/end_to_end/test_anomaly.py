"""What every transport says of anomalies is what an ``AnomalyMonitor`` says of the same series."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import torch
from websockets.asyncio.client import connect

from kssm.forecast.anomaly import Alarm, AnomalyMonitor
from kssm.forecast.testing import tiny_forecaster
from kssm_client import AsyncClient, Forecast, RestClient
from kssm_client.types import Anomaly, Encoding
from tests.end_to_end import talk
from tests.end_to_end.live import Live, thread_server

SAMPLES, PROMPT = 120, 60


def series() -> np.ndarray:
    """Two channels, exact in float32, with missing samples, a spike and a level that stays."""
    rng = np.random.default_rng(3)
    time = np.arange(SAMPLES)
    values = np.stack([np.sin(time / 4.0), 0.2 * rng.normal(size=SAMPLES).cumsum()], axis=1)
    values += 0.1 * rng.normal(size=values.shape)
    values[rng.random(values.shape) < 0.05] = np.nan
    values[85, 0] = 6.0
    values[95:, 1] += 6.0
    return values.astype(np.float32).astype(np.float64)


def series_of(channel: int) -> np.ndarray:
    return series()[:, channel]


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with thread_server() as server:
        yield server


@pytest.fixture(scope="module")
def expected() -> Alarm:
    """[SAMPLES, 2], from the library alone."""
    model = tiny_forecaster(thinning=(4, 16))
    values = series()
    tail = model.prefill(torch.from_numpy(values.T.copy()), model.initial_state(2)).tail
    return AnomalyMonitor(2).watch(values, tail.T.numpy())


def assert_said(said: list[list[Anomaly]], expected: Alarm, rtol: float = 1e-12) -> None:
    """``said`` [frames][channels] of the frames after the prompt."""
    for name, wanted in (
        ("tail_probability", expected.probability),
        ("score", -np.log10(expected.probability)),
        ("surprise", expected.surprise),
    ):
        got = [[getattr(anomaly, name) for anomaly in frame] for frame in said]
        np.testing.assert_allclose(np.array(got, dtype=float), wanted[PROMPT:], rtol=rtol)


def said_by(forecast: Forecast) -> list[Anomaly]:
    return list(forecast.anomalies)


def test_the_series_has_something_to_say(expected: Alarm) -> None:
    assert expected.probability[85, 0] < 0.5 * np.nanmin(expected.probability[60:85, 0])
    calm, shifted = expected.surprise[60:85, 1], expected.surprise[95:, 1]
    assert np.nanmax(shifted) > 1.5 * np.nanmax(calm)


async def test_the_websocket_says_it_in_json(live: Live, expected: Alarm) -> None:
    values = series()
    async with connect(live.stream, compression=None) as stream:
        prompt = talk.rows(values[:PROMPT])
        created = await talk.create(stream, channels=2, horizon=1, prompt=prompt)
        said: list[list[Anomaly]] = []
        for seq, sample in enumerate(values[PROMPT:]):
            reply = await talk.ask(stream, talk.text_frame(created["session"], seq, sample[None]))
            said.append([Anomaly(**entry) for entry in reply["anomaly"]])
    assert_said(said, expected)


@pytest.mark.parametrize("encoding", ["json", "binary"])
async def test_the_client_says_it(live: Live, expected: Alarm, encoding: Encoding) -> None:
    values = series()
    async with AsyncClient(live.http) as client:
        session = await client.create_session(
            channels=2, horizon=1, prompt=values[:PROMPT], encoding=encoding
        )
        forecasts = [forecast async for forecast in session.stream(values[PROMPT:])]
    said = [said_by(forecast) for forecast in forecasts]
    assert_said(said, expected, rtol=1e-12 if encoding == "json" else 1e-6)


def test_rest_says_it_of_single_samples_and_of_many(live: Live, expected: Alarm) -> None:
    values = series()
    with RestClient(live.http) as client:
        one = client.create_session(channels=2, horizon=1, prompt=values[:PROMPT])
        said = [
            said_by(client.append(one, seq, sample[None], channels=2))
            for seq, sample in enumerate(values[PROMPT:])
        ]
        assert_said(said, expected)
        many = client.create_session(channels=2, horizon=1)
        bulk = client.append(many, 0, values, channels=2)
    for channel, anomaly in enumerate(bulk.anomalies):
        assert anomaly.tail_probability == pytest.approx(
            np.nanmin(expected.probability[:, channel]), rel=1e-12
        )
        assert anomaly.surprise == pytest.approx(
            np.nanmax(expected.surprise[:, channel]), rel=1e-12
        )


def test_a_batch_says_it_of_every_sample(live: Live, expected: Alarm) -> None:
    series = {"left": series_of(0), "right": series_of(1)}
    with RestClient(live.http) as client:
        forecasts = client.forecast(series, 3, anomaly=True)
        assert all(forecast.anomaly is None for forecast in client.forecast(series, 3))
    for channel, forecast in enumerate(forecasts):
        said = forecast.anomaly
        assert said is not None
        probability, surprise = (wanted[:, channel] for wanted in expected)
        np.testing.assert_allclose(said.tail_probability, probability, rtol=1e-12)
        np.testing.assert_allclose(said.score, -np.log10(probability), rtol=1e-12)
        np.testing.assert_allclose(said.surprise, surprise, rtol=1e-12)


async def test_an_exported_state_takes_its_calibration_along(live: Live, expected: Alarm) -> None:
    values = series()
    async with httpx.AsyncClient(base_url=live.http, timeout=60) as client:

        async def opened(**fields: object) -> str:
            body = {"channels": 2, "horizon": 1, **fields}
            return (await client.post("/v1/sessions", json=body)).json()["session_id"]

        one, other = await opened(prompt=talk.rows(values[:PROMPT])), await opened()
        state = (await client.get(f"/v1/sessions/{one}/state")).content
        assert (await client.put(f"/v1/sessions/{other}/state", content=state)).status_code == 200
        said: list[list[Anomaly]] = []
        for seq, sample in enumerate(values[PROMPT:]):
            frame = {"seq": seq, "values": talk.rows(sample[None])}
            reply = (await client.post(f"/v1/sessions/{other}/frames", json=frame)).json()
            said.append([Anomaly(**entry) for entry in reply["anomaly"]])
    assert_said(said, expected)
