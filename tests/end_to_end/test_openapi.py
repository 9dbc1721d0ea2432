"""The server does what its OpenAPI document says, whatever is thrown at it."""

from __future__ import annotations

from collections.abc import Generator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.end_to_end.live import Live, thread_server

schemathesis.serializer.alias(["application/vnd.safetensors"], "application/octet-stream")

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def live() -> Generator[Live]:
    with thread_server(max_sessions=10**6) as server:
        yield server


def test_the_server_does_what_its_document_says(live):
    schema = schemathesis.openapi.from_url(f"{live.http}/openapi.json")
    seen = 0
    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()
        seen += 1

        @settings(
            max_examples=25,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def check(case):
            response = case.call(base_url=live.http)
            case.validate_response(response, checks=CHECKS)

        check()
    assert seen == 16
