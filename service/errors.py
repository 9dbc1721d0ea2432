"""From exceptions to answers: the one map of codes to statuses and the handlers that use it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from kssm.errors import (
    CapacityError,
    ConflictError,
    InvalidInputError,
    KSSMError,
    NotFoundError,
    StateError,
    UnauthorizedError,
)

logger = logging.getLogger("kssm.service")

STATUS: Mapping[str, int] = MappingProxyType(
    {
        "invalid_json": 400,
        "invalid_message": 400,
        "non_finite_value": 400,
        "value_out_of_range": 400,
        "wrong_shape": 400,
        "empty_frame": 400,
        "invalid_timestamps": 400,
        "invalid_quantiles": 400,
        "invalid_horizon": 400,
        "invalid_tokens": 400,
        "invalid_sampling": 400,
        "no_tokenizer": 400,
        "wrong_model_kind": 400,
        "unknown_type": 400,
        "truncated_frame": 400,
        "unsupported_frame": 400,
        "state_malformed": 400,
        "state_signature": 400,
        "unauthorized": 401,
        "session_not_found": 404,
        "model_not_found": 404,
        "not_found": 404,
        "method_not_allowed": 405,
        "conflict": 409,
        "seq_gap": 409,
        "state_mismatch": 409,
        "state_foreign": 409,
        "message_too_large": 413,
        "invalid_request": 422,
        "session_limit": 429,
        "overloaded": 429,
        "internal": 500,
        "numerical_fault": 500,
        "draining": 503,
        "rows_exhausted": 503,
    }
)

_STATUS_OF_CLASS: tuple[tuple[type[KSSMError], int], ...] = (
    (InvalidInputError, 400),
    (StateError, 400),
    (UnauthorizedError, 401),
    (NotFoundError, 404),
    (ConflictError, 409),
    (CapacityError, 429),
)

_CODE_OF_STATUS: Mapping[int, str] = MappingProxyType(
    {400: "invalid_request", 404: "not_found", 405: "method_not_allowed", 413: "message_too_large"}
)


def status_of(error: BaseException) -> int:
    """The HTTP status of an error: by its code, else by its class, else 500."""
    if not isinstance(error, KSSMError):
        return 500
    known = STATUS.get(error.code)
    if known is not None:
        return known
    return next((status for kind, status in _STATUS_OF_CLASS if isinstance(error, kind)), 500)


def describe(error: BaseException) -> dict[str, object]:
    """The public part of an error. What is not a ``KSSMError`` is logged and told as `internal`."""
    if isinstance(error, KSSMError):
        facts = {"code": error.code, "message": error.message, "retryable": error.retryable}
        return {**error.details, **facts}
    logger.error("unexpected error", exc_info=error)
    return {"code": "internal", "message": "internal error", "retryable": False}


def invalid(error: ValidationError | RequestValidationError, code: str) -> InvalidInputError:
    """A schema violation as one sentence that names the first offending field."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    what = str(first["msg"]).removeprefix("Value error, ")
    message = f"{where}: {what}" if where else what
    return InvalidInputError(message, code=code)


def draining() -> CapacityError:
    """The error that new work meets while the server is stopping."""
    return CapacityError("the server is stopping; try again on another or later", code="draining")


def error_response(error: BaseException) -> Response:
    """The REST answer to an error."""
    body = orjson.dumps({"error": describe(error)}, default=str)
    headers = {"www-authenticate": "Bearer"} if isinstance(error, UnauthorizedError) else None
    return Response(body, status_of(error), headers, media_type="application/json")


def install_error_handlers(app: FastAPI) -> None:
    """Answer every failure of ``app`` with the one error shape."""
    app.add_exception_handler(KSSMError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_error)


async def _on_error(request: Request, error: Exception) -> Response:
    _count(request, error.code if isinstance(error, KSSMError) else "internal")
    return error_response(error)


async def _on_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _on_error(request, invalid(error, "invalid_request"))


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _CODE_OF_STATUS.get(error.status_code, "invalid_request")
    message = HTTPStatus(error.status_code).phrase.lower()
    _count(request, code)
    body = orjson.dumps({"error": {"code": code, "message": message, "retryable": False}})
    headers = dict(error.headers) if error.headers else None
    return Response(body, error.status_code, headers, media_type="application/json")


async def _on_disconnect(_request: Request, _error: Exception) -> Response:
    """The client left while it sent its body: nobody reads this, and nothing is wrong here."""
    return Response(status_code=400)


def _count(request: Request, code: str) -> None:
    request.app.state.service.metrics.error(code)
