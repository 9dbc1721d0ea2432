"""The REST half of the service: batch forecasts, sessions, states."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import quote

import httpx
import numpy as np
import numpy.typing as npt

from kssm_client.address import DEFAULT_URL, parse_address
from kssm_client.backoff import Backoff
from kssm_client.errors import (
    ConnectionFailedError,
    KSSMClientError,
    ProtocolError,
    ReplyLostError,
    error_from_body,
)
from kssm_client.types import Forecast, SeriesAnomaly, SeriesForecast, SessionInfo, Timestamp
from kssm_client.wire import (
    as_rows,
    as_samples,
    as_timestamps,
    forecast_from_body,
    info_from_body,
)

STATE_TYPE = "application/vnd.safetensors"

Json = dict[str, Any]


class RestClient:
    """Blocking calls, one a method; use as ``with``. For asyncio: ``asyncio.to_thread``.

    What the server refuses for now is tried again after ``backoff``, except for calls that
    would then be done twice when only the answer was lost (``create_session``, ``fork``).
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        backoff: Backoff | None = None,
        sleep: Callable[[float], None] = time.sleep,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._http = httpx.Client(
            base_url=parse_address(url).http,
            headers=headers,
            timeout=timeout,
            transport=transport,
        )
        self._backoff = backoff or Backoff(attempts=4)
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ready(self) -> bool:
        """Whether the server can be reached and takes new sessions."""
        try:
            return self._http.get("/readyz").is_success
        except httpx.TransportError:
            return False

    def models(self) -> Json:
        """The models served, as the server describes them."""
        return self._json("GET", "/v1/models")

    def forecast(
        self,
        series: Sequence[npt.ArrayLike] | Mapping[str, npt.ArrayLike],
        horizon: int,
        *,
        quantiles: Sequence[float] = (0.1, 0.5, 0.9),
        model: str | None = None,
        timestamps: Sequence[Sequence[Timestamp]] | None = None,
        anomaly: bool = False,
    ) -> list[SeriesForecast]:
        """Forecast many series at once, each a flat run of numbers of any length.

        A mapping names its series; otherwise they are called "0", "1", …. ``anomaly``: with the
        anomaly scores of every sample given.
        """
        named = series if isinstance(series, Mapping) else dict(_numbered(series))
        times = [None] * len(named) if timestamps is None else timestamps
        body: Json = {
            "series": [
                _series(*item, stamps) for item, stamps in zip(named.items(), times, strict=True)
            ],
            "horizon": horizon,
            "quantiles": list(quantiles),
        }
        wanted = _optional(model=model, anomaly=anomaly or None)
        reply = self._json("POST", "/v1/forecast", body | wanted)
        return [_series_forecast(entry) for entry in reply["forecasts"]]

    def create_session(
        self,
        *,
        channels: int = 1,
        horizon: int = 24,
        quantiles: Sequence[float] = (0.1, 0.5, 0.9),
        model: str | None = None,
        sample_interval: float | None = None,
        prompt: npt.ArrayLike | None = None,
    ) -> str:
        """Open a session and return its id."""
        rows = None if prompt is None else as_rows(as_samples(prompt, channels))
        body: Json = {"channels": channels, "horizon": horizon, "quantiles": list(quantiles)}
        body |= _optional(model=model, sample_interval=sample_interval, prompt=rows)
        return str(self._json("POST", "/v1/sessions", body, repeat=False)["session_id"])

    def session(self, session_id: str) -> SessionInfo:
        """A session's settings and next sequence number."""
        return info_from_body(self._json("GET", _path(session_id)))

    def delete_session(self, session_id: str) -> None:
        """Delete a session."""
        self._call("DELETE", _path(session_id))

    def append(
        self,
        session_id: str,
        seq: int,
        values: npt.ArrayLike,
        *,
        channels: int = 1,
        timestamps: Sequence[Timestamp] | None = None,
    ) -> Forecast:
        """Send frame number ``seq``, [samples, channels]; the forecast after it.

        A number sent before is not applied again. ReplyLostError if it was so long ago that
        the server no longer has its forecast.
        """
        body: Json = {"seq": seq, "values": as_rows(as_samples(values, channels))}
        if timestamps is not None:
            body["timestamps"] = as_timestamps(timestamps)
        reply = self._json("POST", _path(session_id, "frames"), body)
        if reply.get("type") == "ack":
            raise ReplyLostError("the frame was applied before, its forecast is gone")
        return forecast_from_body(reply)

    def session_forecast(
        self, session_id: str, horizon: int, quantiles: Sequence[float] = (0.1, 0.5, 0.9)
    ) -> Forecast:
        """A forecast after the frames sent so far."""
        body: Json = {"horizon": horizon, "quantiles": list(quantiles)}
        return forecast_from_body(self._json("POST", _path(session_id, "forecast"), body))

    def reset(self, session_id: str) -> None:
        """Forget the history; settings and numbering go on."""
        self._call("POST", _path(session_id, "reset"))

    def fork(self, session_id: str) -> str:
        """A second session with the same history, numbered from 0; its id."""
        return str(self._json("POST", _path(session_id, "fork"), repeat=False)["session_id"])

    def get_state(self, session_id: str) -> bytes:
        """The session's state as a signed safetensors blob."""
        return self._call("GET", _path(session_id, "state")).content

    def put_state(self, session_id: str, state: bytes) -> None:
        """Replace the history by a state of the same tenant, model and number of channels."""
        headers = {"Content-Type": STATE_TYPE}
        self._call("PUT", _path(session_id, "state"), content=state, headers=headers)

    def _json(
        self, method: str, path: str, body: Json | None = None, *, repeat: bool = True
    ) -> Json:
        if body is None:
            return _parsed(self._call(method, path, repeat=repeat))
        content = json.dumps(body, allow_nan=False).encode()
        headers = {"Content-Type": "application/json"}
        return _parsed(self._call(method, path, content=content, headers=headers, repeat=repeat))

    def _call(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        repeat: bool = True,
    ) -> httpx.Response:
        attempt = 0
        while True:
            try:
                return self._once(method, path, content, headers)
            except KSSMClientError as error:
                attempt += 1
                lost = isinstance(error, ConnectionFailedError)
                give_up = attempt > self._backoff.attempts or (lost and not repeat)
                if give_up or not error.retryable:
                    raise
            self._sleep(self._backoff.delay(attempt))

    def _once(
        self, method: str, path: str, content: bytes | None, headers: Mapping[str, str] | None
    ) -> httpx.Response:
        try:
            response = self._http.request(method, path, content=content, headers=headers)
        except httpx.TransportError as error:
            raise ConnectionFailedError(f"{method} {path} failed: {error}") from error
        if response.is_success:
            return response
        body = _parsed(response).get("error")
        if not isinstance(body, dict):
            raise ProtocolError(f"{method} {path}: status {response.status_code} without an error")
        raise error_from_body(cast("Mapping[str, object]", body))


def _parsed(response: httpx.Response) -> Json:
    try:
        body = response.json()
    except ValueError as error:
        raise ProtocolError(f"status {response.status_code} with a body that is no JSON") from error
    if not isinstance(body, dict):
        raise ProtocolError(f"status {response.status_code} with a body that is no JSON object")
    return cast("Json", body)


def _path(session_id: str, action: str = "") -> str:
    base = f"/v1/sessions/{quote(session_id, safe='')}"
    return f"{base}/{action}" if action else base


def _optional(**fields: object) -> Json:
    return {name: value for name, value in fields.items() if value is not None}


def _numbered(series: Sequence[npt.ArrayLike]) -> list[tuple[str, npt.ArrayLike]]:
    return [(str(index), values) for index, values in enumerate(series)]


def _series(name: str, values: npt.ArrayLike, timestamps: Sequence[Timestamp] | None) -> Json:
    flat = [row[0] for row in as_rows(as_samples(values, 1))]
    times = None if timestamps is None else as_timestamps(timestamps)
    return {"id": name, "values": flat} | _optional(timestamps=times)


def _series_forecast(entry: Mapping[str, Any]) -> SeriesForecast:
    by_level = sorted((float(k), v) for k, v in entry["quantiles"].items())
    return SeriesForecast(
        id=str(entry["id"]),
        mean=np.asarray(entry["mean"], dtype=np.float64),
        levels=tuple(level for level, _ in by_level),
        values=np.asarray([values for _, values in by_level], dtype=np.float64),
        anomaly=_series_anomaly(entry["anomaly"]) if "anomaly" in entry else None,
    )


def _series_anomaly(entry: Mapping[str, Any]) -> SeriesAnomaly:
    names = ("score", "tail_probability", "surprise")
    return SeriesAnomaly(*(np.asarray(entry[name], dtype=np.float64) for name in names))
