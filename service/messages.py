"""The control messages of the WebSocket, as pydantic models; frames are parsed by ``wire``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from service.schemas import ForecastOptions, GenerateOptions, SessionCreate, Strict, Tokens

RequestId = Annotated[str, Field(max_length=256)]


class StreamCreate(SessionCreate):
    """``session.create`` over the WebSocket."""

    type: Literal["session.create"]
    encoding: Literal["json", "binary"] = "json"
    binary_version: Literal[1, 2] = 1
    request_id: RequestId | None = None


class StreamAttach(Strict):
    """``session.attach``: continue a session on this connection."""

    type: Literal["session.attach"]
    session: str
    encoding: Literal["json", "binary"] = "json"
    binary_version: Literal[1, 2] = 1
    request_id: RequestId | None = None


class StreamForecast(ForecastOptions):
    """``forecast.create``: a forecast without a new frame."""

    type: Literal["forecast.create"]
    session: str
    request_id: RequestId | None = None


class StreamReset(Strict):
    """``session.reset``: forget the signal, keep the session."""

    type: Literal["session.reset"]
    session: str
    request_id: RequestId | None = None


class StreamClose(Strict):
    """``session.close``: delete the session."""

    type: Literal["session.close"]
    session: str
    request_id: RequestId | None = None


class Keepalive(Strict):
    """``keepalive``: answered with an ack, nothing else happens."""

    type: Literal["keepalive"]
    request_id: RequestId | None = None


class StreamTokens(Tokens):
    """``tokens.append``: text or token ids that follow those before."""

    type: Literal["tokens.append"]
    session: str
    request_id: RequestId | None = None


class StreamGenerate(GenerateOptions):
    """``generate.create``: let the model go on with a session's text."""

    type: Literal["generate.create"]
    session: str
    request_id: RequestId | None = None


class StreamCancel(Strict):
    """``generate.cancel``: end the session's generations before their next token."""

    type: Literal["generate.cancel"]
    session: str
    request_id: RequestId | None = None


TextControl = StreamTokens | StreamGenerate | StreamCancel
Control = (
    StreamCreate
    | StreamAttach
    | StreamForecast
    | StreamReset
    | StreamClose
    | Keepalive
    | TextControl
)
