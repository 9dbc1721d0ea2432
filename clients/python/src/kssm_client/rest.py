"""The REST half of the service: batch forecasts, sessions, states."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack
from urllib.parse import quote

import httpx
import numpy as np
import numpy.typing as npt

from kssm_client.address import DEFAULT_URL, parse_address
from kssm_client.backoff import Backoff
from kssm_client.errors import InvalidInputError, ReplyLostError
from kssm_client.http import Http, Json
from kssm_client.replies import forecast_from_body, info_from_body
from kssm_client.text import (
    Generated,
    GenerateOptions,
    Tokens,
    generated_from_body,
    plain,
    tokens_field,
)
from kssm_client.types import Forecast, SeriesAnomaly, SeriesForecast, SessionInfo, Timestamp
from kssm_client.wire import as_rows, as_samples, as_timestamps

STATE_TYPE = "application/vnd.safetensors"


class RestClient:
    """Blocking calls, one a method; use as ``with``. For asyncio: ``asyncio.to_thread``.

    What the server refuses for now is tried again after ``backoff``, except for calls that
    would then be done twice when only the answer was lost (``create_session``, ``create_text``,
    ``generate``, ``fork``).
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
        client = httpx.Client(
            base_url=parse_address(url).http,
            headers=headers,
            timeout=timeout,
            transport=transport,
        )
        self._http = Http(client, backoff or Backoff(attempts=4), sleep)

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
        return self._http.succeeds("/readyz")

    def models(self) -> Json:
        """The models served, as the server describes them."""
        return self._http.json("GET", "/v1/models")

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
        reply = self._http.json("POST", "/v1/forecast", body | wanted)
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
        timestamps: Sequence[Timestamp] | None = None,
    ) -> str:
        """Open a session and return its id; ``timestamps`` are the prompt's."""
        rows = None if prompt is None else as_rows(as_samples(prompt, channels))
        times = None if timestamps is None else as_timestamps(timestamps)
        body: Json = {"channels": channels, "horizon": horizon, "quantiles": list(quantiles)}
        body |= _optional(model=model, sample_interval=sample_interval)
        body |= _optional(prompt=rows, timestamps=times)
        return str(self._http.json("POST", "/v1/sessions", body, repeat=False)["session_id"])

    def session(self, session_id: str) -> SessionInfo:
        """A session's settings and next sequence number."""
        return info_from_body(self._http.json("GET", _path(session_id)))

    def delete_session(self, session_id: str) -> None:
        """Delete a session."""
        self._http.call("DELETE", _path(session_id))

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
        reply = self._http.json("POST", _path(session_id, "frames"), body)
        if reply.get("type") == "ack":
            raise ReplyLostError("the frame was applied before, its forecast is gone")
        return forecast_from_body(reply)

    def session_forecast(
        self,
        session_id: str,
        horizon: int | None = None,
        quantiles: Sequence[float] | None = None,
    ) -> Forecast:
        """A forecast after the frames sent so far; None: the session's horizon or quantiles."""
        levels = None if quantiles is None else list(quantiles)
        body = _optional(horizon=horizon, quantiles=levels)
        return forecast_from_body(self._http.json("POST", _path(session_id, "forecast"), body))

    def create_text(self, prompt: Tokens | None = None, *, model: str | None = None) -> str:
        """Open a session of a language model that begins with ``prompt``; its id."""
        body = _optional(prompt=None if prompt is None else plain(prompt), model=model)
        return str(self._http.json("POST", "/v1/sessions", body, repeat=False)["session_id"])

    def append_tokens(self, session_id: str, seq: int, tokens: Tokens) -> None:
        """Add to a language session's text; a number sent before is not applied again."""
        body: Json = {"seq": seq, **tokens_field(tokens)}
        self._http.json("POST", _path(session_id, "tokens"), body)

    def generate(
        self, session_id: str, max_tokens: int = 64, **options: Unpack[GenerateOptions]
    ) -> Generated:
        """Let a language model go on with the session's text, which then holds what it made.

        Answers when the text has ended, so give the client a ``timeout`` that is long enough: a
        request given up cancels the rest. Token by token there is ``open_text``.
        """
        body: Json = {"max_tokens": max_tokens, **options}
        path = _path(session_id, "generate")
        return generated_from_body(self._http.json("POST", path, body, repeat=False))

    def reset(self, session_id: str) -> None:
        """Forget the history; settings and numbering go on."""
        self._http.call("POST", _path(session_id, "reset"))

    def fork(self, session_id: str) -> str:
        """A second session with the same history, numbered from 0; its id."""
        return str(self._http.json("POST", _path(session_id, "fork"), repeat=False)["session_id"])

    def get_state(self, session_id: str) -> bytes:
        """The session's state as a signed safetensors blob."""
        return self._http.call("GET", _path(session_id, "state")).content

    def put_state(self, session_id: str, state: bytes) -> None:
        """Replace the history by a state of the same tenant, model and number of channels."""
        headers = {"Content-Type": STATE_TYPE}
        self._http.call("PUT", _path(session_id, "state"), content=state, headers=headers)


def _path(session_id: str, action: str = "") -> str:
    base = f"/v1/sessions/{quote(session_id, safe='')}"
    return f"{base}/{action}" if action else base


def _optional(**fields: object) -> Json:
    return {name: value for name, value in fields.items() if value is not None}


def _numbered(series: Sequence[npt.ArrayLike]) -> list[tuple[str, npt.ArrayLike]]:
    return [(str(index), values) for index, values in enumerate(series)]


def _series(name: str, values: npt.ArrayLike, timestamps: Sequence[Timestamp] | None) -> Json:
    if np.ndim(values) == 0:
        message = f"series {name} is not a sequence; a single series is given as [series]"
        raise InvalidInputError(message, "wrong_shape")
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
