"""A server's address, whichever way it was written."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from kssm_client.errors import InvalidInputError

DEFAULT_URL = "http://127.0.0.1:8000"

_STREAM_PATH = "/v1/stream"
_SECURE = {"http": False, "ws": False, "https": True, "wss": True}


@dataclass(frozen=True, slots=True)
class Address:
    """``http`` is the base of REST calls, ``stream`` the WebSocket's URL."""

    http: str
    stream: str


def parse_address(url: str) -> Address:
    """Accepts http, https, ws, wss, with or without the stream's path; else InvalidInputError."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in _SECURE or not parts.netloc:
        raise InvalidInputError(f"not a server address: {url!r}")
    secure = _SECURE[parts.scheme]
    prefix = parts.path.rstrip("/").removesuffix(_STREAM_PATH)
    return Address(
        http=urlunsplit(("https" if secure else "http", parts.netloc, prefix, "", "")),
        stream=urlunsplit(("wss" if secure else "ws", parts.netloc, prefix + _STREAM_PATH, "", "")),
    )
