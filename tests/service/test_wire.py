from __future__ import annotations

import base64
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kssm.errors import InvalidInputError
from kssm.runtime import ForecastResult
from service import messages, wire

APPEND = {"type": "frames.append", "session": "s", "seq": 3, "values": [[1.0, None]]}


def text(**changes) -> str:
    return json.dumps({**APPEND, **changes})


def rejected(message: wire.Message) -> wire.Rejected:
    assert isinstance(message, wire.Rejected)
    return message


def test_append_as_text():
    message = wire.parse_text(text(request_id="r", timestamps=[5]))
    assert isinstance(message, wire.Append)
    assert (message.session, message.handle, message.request_id) == ("s", None, "r")
    assert message.frame.seq == 3
    np.testing.assert_array_equal(message.frame.values, [[1.0, np.nan]])
    np.testing.assert_array_equal(message.frame.timestamps, [5.0])


def test_append_as_base64_and_as_binary_carry_the_same_samples():
    payload = np.array([1.0, np.nan, 3.0, 4.0], dtype="<f4").tobytes()
    texted = wire.parse_text(text(values=base64.b64encode(payload).decode()))
    binary = wire.parse_binary(struct.pack("<BBHIQ", 1, 1, 0, 7, 3) + payload)
    assert isinstance(texted, wire.Append)
    assert isinstance(binary, wire.Append)
    assert (binary.handle, binary.session, binary.frame.seq) == (7, None, 3)
    assert texted.frame.values.tobytes() == binary.frame.values.tobytes() == payload


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"seq": -1}, "invalid_message"),
        ({"seq": 1.0}, "invalid_message"),
        ({"seq": True}, "invalid_message"),
        ({"seq": None}, "invalid_message"),
        ({"seq": 2**63}, "invalid_message"),
        ({"session": 5}, "invalid_message"),
        ({"values": None}, "invalid_message"),
        ({"values": []}, "empty_frame"),
        ({"values": [["x"]]}, "invalid_message"),
        ({"timestamps": 5}, "invalid_timestamps"),
        ({"timestamps": [None]}, "invalid_timestamps"),
        ({"request_id": 5}, "invalid_message"),
        ({"request_id": "r" * 257}, "invalid_message"),
        ({"extra": 1}, "invalid_message"),
        ({"type": "frames.prepend"}, "unknown_type"),
        ({"type": None}, "unknown_type"),
        ({"type": ["frames.append"]}, "unknown_type"),
    ],
)
def test_bad_text_names_what_is_wrong(changes, code):
    assert rejected(wire.parse_text(text(**changes))).error.code == code


def test_a_rejected_message_keeps_its_address():
    message = rejected(wire.parse_text(text(values=[], request_id="r")))
    assert (message.session, message.seq, message.request_id) == ("s", 3, "r")
    assert rejected(wire.parse_text(text(session="x" * 65, values=[]))).session is None


@pytest.mark.parametrize(
    "data",
    [
        "",
        "nonsense",
        "[1",
        '{"a": NaN}',
        '{"a": Infinity}',
        '{"a": -Infinity}',
        "1e999",
        "9" * 5000,
        "[" * 100_000,
        '{"a":' * 5000,
        '"\\ud800"',
        b"\xff\xfe",
        '{"type": "keepalive"} {}',
    ],
)
def test_what_is_not_strict_json_is_refused(data):
    assert rejected(wire.parse_text(data)).error.code == "invalid_json"


@pytest.mark.parametrize("data", ['{"values": [[NaN]]}', b"[NaN"])
def test_who_sends_nan_learns_that_null_is_missing(data):
    assert "a missing value is null" in rejected(wire.parse_text(data)).error.message
    assert "null" not in rejected(wire.parse_text("{")).error.message


@pytest.mark.parametrize("data", ["[]", "5", "null", '"text"'])
def test_a_message_is_an_object(data):
    assert rejected(wire.parse_text(data)).error.code == "invalid_message"


def test_control_messages_are_parsed():
    message = wire.parse_text('{"type": "session.create", "channels": 2, "encoding": "binary"}')
    assert isinstance(message, messages.StreamCreate)
    assert (message.channels, message.horizon, message.encoding) == (2, 24, "binary")
    for kind in ("session.attach", "forecast.create", "session.reset", "session.close"):
        parsed = wire.parse_text(json.dumps({"type": kind, "session": "s"}))
        assert not isinstance(parsed, wire.Rejected | wire.Append)
        assert parsed.type == kind
    assert isinstance(wire.parse_text('{"type": "keepalive"}'), messages.Keepalive)


@pytest.mark.parametrize(
    "body",
    [
        {"type": "session.create", "channels": "2"},
        {"type": "session.create", "channels": 0},
        {"type": "session.create", "channels": True},
        {"type": "session.create", "sample_interval": 0},
        {"type": "session.create", "encoding": "xml"},
        {"type": "session.create", "encoding": "binary", "binary_version": 3},
        {"type": "session.create", "unknown": 1},
        {"type": "session.attach"},
        {"type": "session.attach", "session": None},
        {"type": "keepalive", "session": "s"},
    ],
)
def test_bad_control_messages_are_refused(body):
    assert rejected(wire.parse_text(json.dumps(body))).error.code == "invalid_message"


HEADER = struct.pack("<BBHIQ", 1, 1, 0, 7, 3)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "truncated_frame"),
        (HEADER[:15], "truncated_frame"),
        (HEADER + b"123", "truncated_frame"),
        (HEADER, "empty_frame"),
        (struct.pack("<BBHIQ", 2, 1, 0, 7, 3) + b"1234", "unsupported_frame"),
        (struct.pack("<BBHIQ", 1, 2, 0, 7, 3) + b"1234", "unsupported_frame"),
        (struct.pack("<BBHIQ", 1, 1, 1, 7, 3) + b"1234", "unsupported_frame"),
        (struct.pack("<BBHIQ", 1, 1, 0, 7, 2**63) + b"1234", "invalid_message"),
    ],
)
def test_bad_binary_names_what_is_wrong(data, code):
    assert rejected(wire.parse_binary(data)).error.code == code


@given(st.binary(max_size=64))
def test_no_bytes_raise(data):
    wire.parse_binary(data)
    wire.parse_text(data)


SCALARS = [None, True, 0, -1, 2**63, 1e308, "", "x", "AAAA", "2024-01-01"]
NASTY = [*SCALARS, [], {}, [[]], [[1.0]], [[None, 2]], [{}], {"a": []}, *([x] for x in SCALARS)]
KINDS = ["frames.append", "session.create", "session.attach", "forecast.create", "keepalive"]
FIELDS = ["session", "seq", "values", "timestamps", "request_id", "channels", "quantiles", "prompt"]


@given(st.sampled_from(KINDS), st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(NASTY)))
def test_no_json_raises(kind, fields):
    message = wire.parse_text(json.dumps({"type": kind, **fields}))
    assert message is not None


def result(channels: int = 2, horizon: int = 3) -> ForecastResult:
    values = np.arange(channels * 2 * horizon, dtype=np.float64).reshape(channels, 2, horizon)
    return ForecastResult(values, horizon, (0.1, 0.9), np.array([[0.6, 0.25, 1.5], [np.nan] * 3]))


def test_a_forecast_as_text():
    body = json.loads(wire.encode_forecast("s", 4, result(), "r"))
    assert body == {
        "type": "forecast",
        "session": "s",
        "seq": 4,
        "horizon": 3,
        "quantiles": {
            "0.1": [[0.0, 1.0, 2.0], [6.0, 7.0, 8.0]],
            "0.9": [[3.0, 4.0, 5.0], [9.0, 10.0, 11.0]],
        },
        "anomaly": [
            {"score": 0.6, "tail_probability": 0.25, "surprise": 1.5},
            {"score": None, "tail_probability": None, "surprise": None},
        ],
        "request_id": "r",
    }


def test_a_forecast_as_binary():
    data = wire.encode_forecast_binary(7, 4, result())
    assert struct.unpack_from("<BBHIQ", data) == (1, 2, 0, 7, 4)
    floats = np.frombuffer(data, dtype="<f4", offset=16)
    np.testing.assert_array_equal(floats[:12], np.arange(12))
    np.testing.assert_array_equal(floats[12:], np.array([0.6, 0.25, np.nan, np.nan], dtype="<f4"))


def test_a_forecast_as_binary_of_version_2():
    data = wire.encode_forecast_binary(7, 4, result(), 2)
    assert struct.unpack_from("<BBHIQ", data) == (2, 2, 0, 7, 4)
    floats = np.frombuffer(data, dtype="<f4", offset=16)
    expected = np.array([0.6, 0.25, 1.5, np.nan, np.nan, np.nan], dtype="<f4")
    np.testing.assert_array_equal(floats[12:], expected)


def test_a_value_beyond_float32_is_the_largest_float32():
    big = ForecastResult(np.full((1, 1, 1), 1e300), 1, (0.5,), np.array([[0.3, 0.5, 0.9]]))
    floats = np.frombuffer(wire.encode_forecast_binary(1, 0, big), dtype="<f4", offset=16)
    assert floats[0] == np.finfo(np.float32).max


def test_errors_hide_what_is_internal():
    body = json.loads(wire.encode_error(RuntimeError("secret"), "s", 1, "r"))
    assert body["error"] == {"code": "internal", "message": "internal error", "retryable": False}
    known = InvalidInputError("told", code="wrong_shape", rows=3)
    assert json.loads(wire.encode_error(known))["error"] == {
        "code": "wrong_shape",
        "message": "told",
        "retryable": False,
        "rows": 3,
    }


def test_acks_and_goaway():
    assert json.loads(wire.encode_ack("keepalive", None)) == {"type": "ack", "of": "keepalive"}
    assert json.loads(wire.encode_goaway(2.5)) == {"type": "goaway", "time_left_s": 2.5}
