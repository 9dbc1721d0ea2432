"""The one exception tree: every expected failure carries a stable code."""

from __future__ import annotations


class KSSMError(Exception):
    """Base of every error a caller can cause or has to handle.

    ``code`` is a stable snake_case identifier, ``retryable`` says whether the same call may
    succeed later, ``details`` holds JSON-ready facts that help the caller (an expected sequence
    number, say).
    """

    code: str = "internal"
    retryable: bool = False

    def __init__(self, message: str, code: str | None = None, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        if code is not None:
            self.code = code


class InvalidInputError(KSSMError):
    """The request itself is wrong; sending it again unchanged cannot succeed."""

    code = "invalid_request"


class NotFoundError(KSSMError):
    """What was named does not exist, or belongs to somebody else."""

    code = "not_found"


class UnauthorizedError(KSSMError):
    """No valid credential came with the request."""

    code = "unauthorized"


class ConflictError(KSSMError):
    """The request does not fit the state it meets (a sequence gap, say)."""

    code = "conflict"


class CapacityError(KSSMError):
    """A limit is reached now and may not be later."""

    code = "overloaded"
    retryable = True


class StateError(KSSMError):
    """A state blob was refused before anything of it was used."""

    code = "state_malformed"


class NumericalError(KSSMError):
    """A row's numbers left the finite range; its last good state was kept."""

    code = "numerical_fault"


class CheckpointError(KSSMError):
    """A checkpoint is missing, malformed or does not fit its configuration."""

    code = "invalid_checkpoint"
