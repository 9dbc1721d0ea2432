from __future__ import annotations

import json
import logging

import pytest

from kssm.errors import (
    CapacityError,
    CheckpointError,
    ConflictError,
    InvalidInputError,
    KSSMError,
    NotFoundError,
    NumericalError,
    StateError,
    UnauthorizedError,
)
from service.errors import STATUS, describe, error_response, status_of


@pytest.mark.parametrize(("code", "status"), STATUS.items())
def test_every_known_code_has_its_status(code, status):
    assert status_of(KSSMError("", code=code)) == status


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidInputError("", code="new"), 400),
        (StateError("", code="new"), 400),
        (UnauthorizedError("", code="new"), 401),
        (NotFoundError("", code="new"), 404),
        (ConflictError("", code="new"), 409),
        (CapacityError("", code="new"), 429),
        (CheckpointError(""), 500),
        (NumericalError(""), 500),
        (KSSMError("", code="new"), 500),
        (RuntimeError(""), 500),
    ],
)
def test_an_unknown_code_has_its_classs_status(error, status):
    assert status_of(error) == status


def test_the_body_names_code_message_and_facts():
    error = CapacityError("too much", code="draining", limit=5)
    response = error_response(error)
    assert response.status_code == 503
    assert json.loads(response.body) == {
        "error": {"code": "draining", "message": "too much", "retryable": True, "limit": 5}
    }


def test_facts_cannot_replace_the_code():
    assert describe(InvalidInputError("real", retryable=True))["retryable"] is False


def test_a_missing_key_is_told_how_to_give_one():
    assert error_response(UnauthorizedError("")).headers["www-authenticate"] == "Bearer"


def test_what_is_unexpected_is_logged_and_not_told(caplog):
    with caplog.at_level(logging.ERROR):
        body = json.loads(error_response(ValueError("a secret")).body)
    assert body == {"error": {"code": "internal", "message": "internal error", "retryable": False}}
    assert "a secret" in caplog.text
