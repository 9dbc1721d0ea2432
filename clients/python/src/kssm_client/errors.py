"""One tree for everything that can go wrong; server codes map to its classes."""

from __future__ import annotations

from collections.abc import Mapping


class KSSMClientError(Exception):
    """Base of every error this package raises on purpose.

    ``code`` is stable and snake_case, ``retryable`` says whether the same call may succeed
    later, ``details`` holds whatever else the server said (``expected_seq``, say).
    """

    code: str = "client_error"
    retryable: bool = False

    def __init__(
        self,
        message: str,
        code: str | None = None,
        *,
        retryable: bool | None = None,
        details: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = dict(details or {})
        self.code = type(self).code if code is None else code
        self.retryable = type(self).retryable if retryable is None else retryable

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"


class ConnectionFailedError(KSSMClientError):
    """The server could not be reached, or not again within the allowed attempts."""

    code = "connection_failed"
    retryable = True


class ClientClosedError(KSSMClientError):
    """The client or the session was closed before the call was answered."""

    code = "client_closed"


class ProtocolError(KSSMClientError):
    """The server said something the protocol does not allow."""

    code = "protocol_error"


class ReplyLostError(KSSMClientError):
    """The frame was applied, once, but the server no longer keeps its forecast."""

    code = "reply_lost"


class SourceError(KSSMClientError):
    """A local file, column or device cannot be read, or a file not written."""

    code = "invalid_source"


class ServerError(KSSMClientError):
    """The server answered with an error that has no class of its own."""

    code = "internal"

    @property
    def applied(self) -> bool:
        """Whether the frame this answers was applied, although it has no forecast."""
        return self.details.get("applied") is True


class InvalidInputError(ServerError):
    """The request itself is wrong; sending it again unchanged cannot succeed."""

    code = "invalid_request"


class TooLargeError(InvalidInputError):
    """The message is larger than the server takes."""

    code = "message_too_large"


class UnauthorizedError(ServerError):
    """The server knows no tenant for the given API key."""

    code = "unauthorized"


class NotFoundError(ServerError):
    """What was named does not exist, or belongs to another tenant."""

    code = "not_found"


class ConflictError(ServerError):
    """The request does not fit the session it meets."""

    code = "conflict"


class OverloadedError(ServerError):
    """A limit of the server is reached now and may not be later."""

    code = "overloaded"
    retryable = True


_CLASSES: Mapping[str, type[ServerError]] = {
    **dict.fromkeys(
        (
            "invalid_json",
            "invalid_message",
            "invalid_request",
            "non_finite_value",
            "value_out_of_range",
            "wrong_shape",
            "empty_frame",
            "invalid_timestamps",
            "invalid_quantiles",
            "invalid_horizon",
            "invalid_tokens",
            "invalid_sampling",
            "no_tokenizer",
            "wrong_model_kind",
            "unknown_type",
            "truncated_frame",
            "unsupported_frame",
            "state_malformed",
            "state_signature",
            "method_not_allowed",
        ),
        InvalidInputError,
    ),
    "message_too_large": TooLargeError,
    "unauthorized": UnauthorizedError,
    **dict.fromkeys(("session_not_found", "model_not_found", "not_found"), NotFoundError),
    **dict.fromkeys(
        ("conflict", "seq_gap", "state_mismatch", "state_foreign", "frames_lost", "session_taken"),
        ConflictError,
    ),
    **dict.fromkeys(("session_limit", "overloaded", "draining", "rows_exhausted"), OverloadedError),
}


def error_from_body(body: Mapping[str, object]) -> ServerError:
    """The exception for a server's ``{"code", "message", "retryable", ...}`` object."""
    code = str(body.get("code", "internal"))
    details = {k: v for k, v in body.items() if k not in ("code", "message", "retryable")}
    return _CLASSES.get(code, ServerError)(
        str(body.get("message", code)),
        code,
        retryable=bool(body.get("retryable", False)),
        details=details,
    )
