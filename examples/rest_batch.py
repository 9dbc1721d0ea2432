"""Forecast many series of different lengths with one request.

kssm serve &
python -m examples.rest_batch
"""

from __future__ import annotations

import sys

import numpy as np

from kssm_client import KSSMClientError, RestClient
from kssm_client.display import resample, sparkline

URL = "http://127.0.0.1:8000"
HORIZON = 36


def main(url: str) -> None:
    """Three cycles of different length and trend, with some samples missing."""
    noise = np.random.default_rng(0)
    series = {}
    for name, length, period in (("short", 60, 12), ("medium", 200, 24), ("long", 900, 36)):
        time = np.arange(length)
        values = np.sin(time * np.pi * 2 / period) + time / length + noise.normal(0, 0.1, length)
        values[noise.random(length) < 0.05] = np.nan
        series[name] = values
    with RestClient(url) as client:
        for forecast in client.forecast(series, HORIZON):
            past = sparkline(series[forecast.id][-HORIZON:])
            ahead = sparkline(resample(forecast.quantile(0.5), HORIZON))
            print(f"{forecast.id:>6}: {past} → {ahead}")


if __name__ == "__main__":
    try:
        main(*(sys.argv[1:] or [URL]))
    except KSSMClientError as error:
        sys.exit(f"error: {error}")
