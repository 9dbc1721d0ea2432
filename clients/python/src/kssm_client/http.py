"""HTTP requests: tried again where that is safe, their errors as exceptions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import httpx

from kssm_client.backoff import Backoff
from kssm_client.errors import (
    ConnectionFailedError,
    KSSMClientError,
    ProtocolError,
    error_from_body,
)
from kssm_client.wire import to_json

Json = dict[str, Any]


class Http:
    """Requests to one server.

    Raises InvalidInputError, ConnectionFailedError, ProtocolError, ServerError.

    What the server refuses for now is tried again after ``backoff``; so is what failed on the way,
    unless ``repeat`` is False because it would be done twice if only the answer was lost.
    """

    def __init__(
        self, client: httpx.Client, backoff: Backoff, sleep: Callable[[float], None]
    ) -> None:
        self._client = client
        self._backoff = backoff
        self._sleep = sleep

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def succeeds(self, path: str) -> bool:
        """Whether a GET is answered, and with success."""
        try:
            return self._client.get(path).is_success
        except httpx.TransportError:
            return False

    def json(
        self, method: str, path: str, body: Json | None = None, *, repeat: bool = True
    ) -> Json:
        """Send a JSON object, or nothing; the JSON object that comes back."""
        if body is None:
            return _parsed(self.call(method, path, repeat=repeat))
        content = to_json(body).encode()
        headers = {"Content-Type": "application/json"}
        return _parsed(self.call(method, path, content=content, headers=headers, repeat=repeat))

    def call(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        repeat: bool = True,
    ) -> httpx.Response:
        """A successful answer."""
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
        request = self._client.build_request(method, path, content=content, headers=headers)
        try:
            response = self._client.send(request)
        except httpx.TransportError as error:
            raise ConnectionFailedError(f"{method} {request.url} failed: {error}") from error
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
