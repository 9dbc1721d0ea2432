"""``docs/protocol.md`` against the code: its examples are understood, its codes are all of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from kssm_client.errors import KSSMClientError, ServerError, error_from_body
from kssm_client.replies import BinaryForecast, decode
from kssm_client.text import generated_from_body, token_from_body
from service import wire
from service.errors import STATUS

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
EXAMPLES: list[dict[str, Any]] = [
    json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
]
FROM_SERVER = {"session.created", "forecast", "ack", "error", "goaway"}
TEXT_FROM_SERVER = {"token": token_from_body, "generation": generated_from_body}
FROM_CLIENT = {
    "tokens.append",
    "generate.create",
    "generate.cancel",
    "session.create",
    "session.attach",
    "frames.append",
    "forecast.create",
    "session.reset",
    "session.close",
    "keepalive",
}


def examples(types: set[str]) -> list[dict[str, Any]]:
    return [example for example in EXAMPLES if example.get("type") in types]


def test_every_type_has_an_example() -> None:
    assert {example["type"] for example in EXAMPLES if "type" in example} == (
        FROM_SERVER | FROM_CLIENT | TEXT_FROM_SERVER.keys()
    )


@pytest.mark.parametrize("example", examples(FROM_CLIENT), ids=lambda e: e["type"])
def test_the_server_understands_the_clients_examples(example: dict[str, Any]) -> None:
    assert not isinstance(wire.parse_text(json.dumps(example)), wire.Rejected)


@pytest.mark.parametrize("example", examples(FROM_SERVER), ids=lambda e: e["type"])
def test_the_client_understands_the_servers_examples(example: dict[str, Any]) -> None:
    decode(json.dumps(example))


@pytest.mark.parametrize(
    "example", examples({*TEXT_FROM_SERVER}), ids=lambda example: example["type"]
)
def test_the_client_understands_generated_text(example: dict[str, Any]) -> None:
    assert TEXT_FROM_SERVER[example["type"]](example).text in {" over", " over the"}


def test_the_binary_example_is_what_it_says() -> None:
    (dump,) = re.findall(r"```\n((?:[0-9a-f]{2} *)+)\n```", PAGE)
    parsed = wire.parse_binary(bytes.fromhex(dump))
    assert isinstance(parsed, wire.Append)
    assert (parsed.handle, parsed.frame.seq) == (1, 3)
    assert str(parsed.frame.values.tolist()) == "[20.5, nan]"
    assert isinstance(decode(b"\x01\x02" + bytes.fromhex(dump)[2:]), BinaryForecast)


def test_the_table_of_errors_is_the_servers() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (yes|no) \|", PAGE, re.MULTILINE)
    assert {code: int(status) for code, status, _ in rows} == dict(STATUS)


@pytest.mark.parametrize("code", sorted(STATUS))
def test_every_code_has_a_class(code: str) -> None:
    error = error_from_body({"code": code, "message": "m", "retryable": False})
    assert isinstance(error, KSSMClientError)
    if code not in {"internal", "numerical_fault"}:
        assert type(error) is not ServerError
