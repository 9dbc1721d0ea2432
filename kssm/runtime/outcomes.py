"""How jobs end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch

from kssm.errors import KSSMError, NumericalError
from kssm.runtime.jobs import Job

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """A job's end: with ``error`` or, where that is None, with ``value``."""

    job: Job
    value: Any = None
    error: KSSMError | None = None


def attempt(action: Callable[[], T]) -> T | KSSMError:
    """What ``action`` returns, or what it raised as an error that is fit for a caller.

    A model may raise anything; it must cost only the jobs of its batch. What it raises is passed on
    where the GPU is lost to this process: nothing would ever succeed again.
    """
    try:
        return action()
    except KSSMError as error:
        return error
    except Exception as error:
        if _gpu_is_lost():
            raise
        _log.exception("the model failed")
        failure = KSSMError("the model failed on this batch", code="internal")
        failure.__cause__ = error
        return failure


def _gpu_is_lost() -> bool:
    """Whether the current GPU answers every call with an error, as after an illegal access."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def fail(jobs: Sequence[Job], error: KSSMError) -> list[Outcome]:
    """The same error for every job."""
    return [Outcome(job, error=error) for job in jobs]


def numerical_fault(message: str, **details: object) -> NumericalError:
    """The error of a job whose numbers left the finite range."""
    return NumericalError(message, code="numerical_fault", **details)
