"""What travels as JSON, as pydantic models: strict, closed, with examples.

Sample values and timestamps are declared here for the documentation and checked by
``service.wire``, which answers with the codes that name what is wrong with them.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, WithJsonSchema

from service.errors import STATUS

_NUMBER_OR_NULL = {"anyOf": [{"type": "number"}, {"type": "null"}]}
Column = Annotated[object, WithJsonSchema({"type": "array", "items": _NUMBER_OR_NULL})]
"""Samples of one series in order of time; null is missing."""
Prompt = Annotated[
    object,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": {"type": "array", "items": _NUMBER_OR_NULL}},
                {"type": "array", "items": {"type": "integer"}},
                {"type": "string"},
            ]
        }
    ),
]
"""Rows of a signal; token ids or text for a language model."""
RowsOrBase64 = Annotated[
    object,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": {"type": "array", "items": _NUMBER_OR_NULL}},
                {"type": "string", "contentEncoding": "base64"},
            ]
        }
    ),
]
"""Rows, or base64 of little-endian float32 [samples, channels] where NaN is missing."""
Timestamps = Annotated[
    object,
    WithJsonSchema({"type": "array", "items": {"anyOf": [{"type": "number"}, {"type": "string"}]}}),
]
"""Unix seconds or ISO 8601, one a sample, strictly increasing."""
_SESSION: Final = "8f14e45fceea167a5a36dedd4bea2543"
Interval = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _example(**fields: JsonValue) -> ConfigDict:
    """The configuration of a model with this example."""
    return ConfigDict(json_schema_extra={"examples": [fields]})


class Strict(BaseModel):
    """No conversions, no unknown fields, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Series(Strict):
    """One history to forecast from."""

    id: str | int | None = None
    values: Column
    timestamps: Timestamps | None = None


class ForecastRequest(Strict):
    """A batch of histories of any lengths and what to forecast for each."""

    model_config = _example(
        series=[{"id": "a", "values": [1.0, 2.0, None, 4.0, 5.0]}],
        horizon=4,
        quantiles=[0.1, 0.5, 0.9],
    )
    model: str | None = None
    series: Annotated[list[Series], Field(min_length=1)]
    horizon: int = 24
    quantiles: list[float] = [0.1, 0.5, 0.9]
    anomaly: bool = False


class SeriesAnomaly(BaseModel):
    """What ``Anomaly`` says, of every sample of a series."""

    score: list[float | None]
    tail_probability: list[float | None]
    surprise: list[float | None]


class SeriesForecast(BaseModel):
    """The forecast of one series; ``mean`` is the median, null where every sample is missing.

    ``anomaly`` is there if the request asked for it.
    """

    id: str | int | None
    mean: list[float | None]
    quantiles: dict[str, list[float | None]]
    anomaly: SeriesAnomaly | None = None


class ForecastResponse(BaseModel):
    """The forecasts in the order of the request's series."""

    model_config = _example(
        model="kssm-signal-base",
        forecasts=[
            {"id": "a", "mean": [6.1, 7.0], "quantiles": {"0.1": [5.2, 5.8], "0.9": [6.9, 8.3]}}
        ],
    )
    model: str
    forecasts: list[SeriesForecast]


class SessionCreate(Strict):
    """A new session; ``prompt`` is history to start from."""

    model_config = _example(channels=1, horizon=24, prompt=[[1.0], [2.0], [3.0]])
    model: str | None = None
    channels: Annotated[int, Field(ge=1)] = 1
    horizon: int = 24
    quantiles: list[float] = [0.1, 0.5, 0.9]
    prompt: Prompt | None = None
    timestamps: Timestamps | None = None
    sample_interval: Interval | None = None


class SessionInfo(BaseModel):
    """What a session is and the ``seq`` its next frame must carry."""

    model_config = _example(
        session_id=_SESSION,
        model="kssm-signal-base",
        channels=1,
        horizon=24,
        quantiles=[0.1, 0.5, 0.9],
        sample_interval=None,
        next_seq=0,
    )
    session_id: str
    model: str
    channels: int
    horizon: int
    quantiles: list[float]
    sample_interval: float | None
    next_seq: int


class Frames(Strict):
    """Samples that follow those sent before."""

    model_config = _example(seq=0, values=[[1.0]])
    seq: int
    values: RowsOrBase64
    timestamps: Timestamps | None = None


class Anomaly(BaseModel):
    """How surprising the frame was, given the forecasts made before it.

    ``tail_probability`` is calibrated and two-sided, of the frame's most extreme sample, ``score``
    its -log10; ``surprise`` is the running score, for what lasts.
    """

    score: float | None
    tail_probability: float | None
    surprise: float | None


class SessionForecast(BaseModel):
    """The forecast after frame ``seq``: one list of ``horizon`` values a channel a quantile.

    The values are null for a channel that has had no sample yet.
    """

    model_config = _example(
        session=_SESSION,
        seq=0,
        horizon=2,
        quantiles={"0.1": [[5.2, 5.8]], "0.9": [[6.9, 8.3]]},
        anomaly=[{"score": 0.35, "tail_probability": 0.447, "surprise": 0.91}],
    )
    session: str
    seq: int
    horizon: int
    quantiles: dict[str, list[list[float | None]]]
    anomaly: list[Anomaly]


class Ack(BaseModel):
    """A duplicate whose forecast is no longer kept: applied before, not again."""

    model_config = _example(type="ack", of="frames.append", session=_SESSION, seq=0)
    type: Literal["ack"]
    of: Literal["frames.append"]
    session: str
    seq: int


class ForecastOptions(Strict):
    """Another horizon or other quantiles than the session's, for this forecast only."""

    model_config = _example(horizon=48)
    horizon: int | None = None
    quantiles: list[float] | None = None


class Tokens(Strict):
    """Text or token ids that follow those before."""

    model_config = _example(seq=0, tokens=[21831, 11687])
    seq: Annotated[int, Field(ge=0, le=2**63 - 1)]
    tokens: list[int] | None = None
    text: str | None = None


class GenerateOptions(Strict):
    """How a language model goes on with a session's text."""

    model_config = _example(max_tokens=32, temperature=0.8, top_p=0.95)
    max_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    stop: list[int | str] = Field(default_factory=list[int | str], max_length=16)
    ignore_eos: bool = False


class Generation(BaseModel):
    """The tokens made, all of them part of the session's text now, and why there are no more."""

    model_config = _example(session=_SESSION, tokens=[625, 262], text=" over the", reason="length")
    session: str
    tokens: list[int]
    text: str | None = None
    reason: Literal["length", "stop", "cancelled"]


class TokensAck(BaseModel):
    """The tokens are part of the session's text."""

    model_config = _example(type="ack", of="tokens.append", session=_SESSION, seq=0)
    type: Literal["ack"]
    of: Literal["tokens.append"]
    session: str
    seq: int


class Model(BaseModel):
    """A model the server answers for."""

    id: str
    kind: Literal["forecaster", "language"]
    fingerprint: str
    max_channels: int
    max_horizon: int
    vocab_size: int | None = None
    max_tokens: int | None = None


class Models(BaseModel):
    """The models the server answers for; the first is the default."""

    models: list[Model]


class ErrorDetail(BaseModel):
    """What went wrong; some codes add facts, such as ``expected_seq``."""

    model_config = ConfigDict(extra="allow") | _example(
        code="seq_gap", message="expected seq 17, got 19", retryable=False, expected_seq=17
    )
    code: Annotated[str, Field(description=f"One of: {', '.join(STATUS)}.")]
    message: str
    retryable: bool


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail
