"""A signal of which nothing is known has no forecast, and says so in strict JSON."""

from __future__ import annotations

import httpx
import numpy as np
from websockets.asyncio.client import connect

from tests.end_to_end import talk
from tests.end_to_end.live import thread_server


async def test_no_sample_no_forecast():
    with thread_server() as live:
        async with httpx.AsyncClient(base_url=live.http) as client:
            series = [{"values": [None, None]}, {"values": [None, 1.0]}]
            response = await client.post("/v1/forecast", json={"series": series, "horizon": 2})
            unknown, known = response.json()["forecasts"]
            assert unknown["mean"] == [None, None]
            assert unknown["quantiles"]["0.1"] == [None, None]
            assert None not in known["mean"]
        async with connect(live.stream, compression=None) as stream:
            created = await talk.create(stream, channels=2, horizon=1, quantiles=[0.5])
            frame = np.array([[np.nan, 1.0]])
            reply = await talk.ask(stream, talk.text_frame(created["session"], 0, frame))
            (unknown,), (known,) = reply["quantiles"]["0.5"]
            assert unknown is None
            assert isinstance(known, float)
            frame = np.array([[2.0, np.nan]])
            reply = await talk.ask(stream, talk.text_frame(created["session"], 1, frame))
            assert all(value is not None for (value,) in reply["quantiles"]["0.5"])
