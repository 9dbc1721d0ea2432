from __future__ import annotations

import pytest

from service.settings import Settings
from tests.service.rest import connect, error, serve


async def test_forecast_of_series_of_different_lengths(client):
    request = {
        "series": [
            {"id": "a", "values": [1, None, 2.5]},
            {"id": 7, "values": [4]},
            {"values": [0]},
        ],
        "horizon": 2,
        "quantiles": [0.9, 0.1],
    }
    response = await client.post("/v1/forecast", json=request)
    assert response.json() == {
        "model": "kssm-signal-base",
        "forecasts": [
            {"id": "a", "mean": [4.0] * 2, "quantiles": {"0.1": [3.6] * 2, "0.9": [4.4] * 2}},
            {"id": 7, "mean": [4.5] * 2, "quantiles": {"0.1": [4.1] * 2, "0.9": [4.9] * 2}},
            {"id": None, "mean": [0.5] * 2, "quantiles": {"0.1": [0.1] * 2, "0.9": [0.9] * 2}},
        ],
    }


async def test_anomalies_of_every_sample_on_request(client):
    request = {"series": [{"values": [1, None]}, {"values": [4]}], "horizon": 1, "anomaly": True}
    forecasts = (await client.post("/v1/forecast", json=request)).json()["forecasts"]
    assert [entry["anomaly"] for entry in forecasts] == [
        {
            "score": [pytest.approx(0.30103, abs=1e-5), None],
            "tail_probability": [0.5, None],
            "surprise": [1.5, None],
        },
        {
            "score": [pytest.approx(0.30103, abs=1e-5)],
            "tail_probability": [0.5],
            "surprise": [1.5],
        },
    ]


async def test_forecast_defaults(client):
    body = (await client.post("/v1/forecast", json={"series": [{"values": [1.0]}]})).json()
    quantiles = body["forecasts"][0]["quantiles"]
    assert list(quantiles) == ["0.1", "0.5", "0.9"]
    assert {len(values) for values in quantiles.values()} == {24}
    assert body["forecasts"][0]["mean"] == quantiles["0.5"]


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"anomaly": "yes"}, (422, "invalid_request")),
        ({"series": []}, (422, "invalid_request")),
        ({"series": None}, (422, "invalid_request")),
        ({"series": [{}]}, (422, "invalid_request")),
        ({"series": [{"values": [], "id": "a"}]}, (400, "empty_frame")),
        ({"series": [{"values": "1"}]}, (400, "invalid_message")),
        ({"series": [{"values": [1e31]}]}, (400, "value_out_of_range")),
        ({"series": [{"values": [1, 2], "timestamps": [2, 1]}]}, (400, "invalid_timestamps")),
        ({"horizon": 0}, (400, "invalid_horizon")),
        ({"horizon": 1025}, (400, "invalid_horizon")),
        ({"horizon": "2"}, (422, "invalid_request")),
        ({"horizon": 2.0}, (422, "invalid_request")),
        ({"horizon": True}, (422, "invalid_request")),
        ({"quantiles": [0.0]}, (400, "invalid_quantiles")),
        ({"quantiles": []}, (400, "invalid_quantiles")),
        ({"quantiles": [0.5, 0.5]}, (400, "invalid_quantiles")),
        ({"model": "other"}, (404, "model_not_found")),
        ({"unknown": 1}, (422, "invalid_request")),
    ],
)
async def test_bad_forecast_requests(client, changes, answer):
    request = {"series": [{"values": [1.0]}], **changes}
    assert error(await client.post("/v1/forecast", json=request)) == answer


async def test_the_number_of_series_is_limited():
    async with serve(Settings(max_series=2)) as app, connect(app) as client:
        request = {"series": [{"values": [1.0]}] * 3}
        assert error(await client.post("/v1/forecast", json=request)) == (422, "invalid_request")
