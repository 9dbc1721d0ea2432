"""Client of a KSSM server: send a signal's frames, get a calibrated forecast after each."""

from kssm_client.aio import AsyncClient, connect
from kssm_client.backoff import Backoff
from kssm_client.errors import (
    ClientClosedError,
    ConflictError,
    ConnectionFailedError,
    InvalidInputError,
    KSSMClientError,
    NotFoundError,
    OverloadedError,
    ProtocolError,
    ReplyLostError,
    ServerError,
    SourceError,
    TooLargeError,
    UnauthorizedError,
)
from kssm_client.rest import RestClient
from kssm_client.session import AsyncSession
from kssm_client.sync import Client, Session
from kssm_client.text import Generated, GenerateOptions, TextSession, Token, open_text
from kssm_client.types import Anomaly, Forecast, SeriesAnomaly, SeriesForecast, SessionInfo

__all__ = [
    "Anomaly",
    "AsyncClient",
    "AsyncSession",
    "Backoff",
    "Client",
    "ClientClosedError",
    "ConflictError",
    "ConnectionFailedError",
    "Forecast",
    "GenerateOptions",
    "Generated",
    "InvalidInputError",
    "KSSMClientError",
    "NotFoundError",
    "OverloadedError",
    "ProtocolError",
    "ReplyLostError",
    "RestClient",
    "SeriesAnomaly",
    "SeriesForecast",
    "ServerError",
    "Session",
    "SessionInfo",
    "SourceError",
    "TextSession",
    "Token",
    "TooLargeError",
    "UnauthorizedError",
    "connect",
    "open_text",
]

__version__ = "0.1.0"
