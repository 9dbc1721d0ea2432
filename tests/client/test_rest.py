"""REST calls against a mock transport: what is sent, what comes back, what is tried again."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from kssm_client import (
    Backoff,
    ConflictError,
    ConnectionFailedError,
    Generated,
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    ProtocolError,
    ReplyLostError,
    RestClient,
    ServerError,
)

Handler = Callable[[httpx.Request], httpx.Response]
FORECAST = {
    "session": "s1",
    "seq": 4,
    "horizon": 2,
    "quantiles": {"0.9": [[3, 4]], "0.1": [[1, 2]]},
    "anomaly": [{"score": None, "tail_probability": None, "surprise": 1.25}],
}
SESSION = {
    "session_id": "s1",
    "model": "m",
    "channels": 1,
    "horizon": 2,
    "quantiles": [0.1, 0.9],
    "next_seq": 5,
}


class Recorder:
    """Answers with what the test says and remembers what it was asked."""

    def __init__(self, *replies: httpx.Response | Exception) -> None:
        self.replies = list(replies)
        self.requests: list[httpx.Request] = []
        self.pauses: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def client(self) -> RestClient:
        return RestClient(
            "ws://server:1/v1/stream",
            api_key="k",
            backoff=Backoff(attempts=2, uniform=lambda: 0.0),
            sleep=self.pauses.append,
            transport=httpx.MockTransport(self),
        )

    def body(self) -> Any:
        return json.loads(self.requests[-1].content)


def ok(body: object, status: int = 200) -> httpx.Response:
    return httpx.Response(status, json=body)


def refusal(status: int, code: str, *, retryable: bool = False) -> httpx.Response:
    error = {"code": code, "message": "no", "retryable": retryable, "expected_seq": 3}
    return httpx.Response(status, json={"error": error})


def test_batch_forecast() -> None:
    reply = {
        "model": "m",
        "forecasts": [
            {"id": "a", "mean": [2, 3], "quantiles": {"0.9": [3, 4], "0.1": [1, 2]}},
            {"id": "b", "mean": [5, 6], "quantiles": {"0.9": [7, 8], "0.1": [4, 5]}},
        ],
    }
    recorder = Recorder(ok(reply))
    series = {"a": [1, None, 3], "b": np.arange(2.0)}
    with recorder.client() as client:
        first, second = client.forecast(series, 2, quantiles=[0.1, 0.9])
    assert str(recorder.requests[0].url) == "http://server:1/v1/forecast"
    assert recorder.requests[0].headers["authorization"] == "Bearer k"
    assert recorder.body() == {
        "series": [{"id": "a", "values": [1, None, 3]}, {"id": "b", "values": [0, 1]}],
        "horizon": 2,
        "quantiles": [0.1, 0.9],
    }
    assert (first.id, first.levels) == ("a", (0.1, 0.9))
    np.testing.assert_array_equal(first.quantile(0.9), [3, 4])
    np.testing.assert_array_equal(second.values, [[4, 5], [7, 8]])


def test_series_without_names_are_numbered_and_may_have_timestamps() -> None:
    recorder = Recorder(ok({"forecasts": []}))
    with recorder.client() as client:
        client.forecast([[1, 2]], 1, model="m", timestamps=[[10, 20]])
    body = recorder.body()
    assert body["series"] == [{"id": "0", "values": [1, 2], "timestamps": [10, 20]}]
    assert body["model"] == "m"


@pytest.mark.parametrize("series", [[1.0, 2.0], {"a": 1.0}, ["text"]], ids=str)
def test_a_number_is_no_series(series: Any) -> None:
    recorder = Recorder()
    with recorder.client() as client, pytest.raises(InvalidInputError, match="not a sequence") as e:
        client.forecast(series, 2)
    assert (e.value.code, recorder.requests) == ("wrong_shape", [])


def test_what_json_does_not_have_is_refused_before_it_is_sent() -> None:
    recorder = Recorder()
    with recorder.client() as client:
        for quantiles in ([np.nan], ["a", object()]):
            with pytest.raises(InvalidInputError) as caught:
                client.forecast([[1.0]], 2, quantiles=quantiles)
            assert caught.value.code == "invalid_message"
    assert recorder.requests == []


def test_a_session_from_creation_to_deletion() -> None:
    blob = b"state"
    recorder = Recorder(
        ok(SESSION, 201),
        ok(SESSION),
        ok(FORECAST),
        ok(FORECAST),
        ok({}),
        ok(SESSION | {"session_id": "s2"}, 201),
        httpx.Response(200, content=blob),
        ok({}),
        httpx.Response(204),
    )
    with recorder.client() as client:
        made = client.create_session(prompt=[1, 2], sample_interval=0.5, timestamps=[8, 9])
        assert made == "s1"
        assert (recorder.body()["prompt"], recorder.body()["timestamps"]) == ([[1], [2]], [8, 9])
        info = client.session("s1")
        assert (info.session, info.next_seq, info.quantiles) == ("s1", 5, (0.1, 0.9))
        forecast = client.append("s1", 4, [7.0], timestamps=[1])
        assert recorder.body() == {"seq": 4, "values": [[7.0]], "timestamps": [1]}
        assert (forecast.seq, forecast.levels) == (4, (0.1, 0.9))
        assert forecast.anomalies[0].score is None
        assert forecast.anomalies[0].surprise == 1.25
        assert client.session_forecast("s1").horizon == 2
        assert recorder.body() == {}
        client.reset("s1")
        assert client.fork("s1") == "s2"
        state = client.get_state("s1")
        assert state == blob
        client.put_state("s2", state)
        assert recorder.requests[-1].headers["content-type"] == "application/vnd.safetensors"
        client.delete_session("a/b")
    called = [f"{r.method} {r.url.raw_path.decode()}" for r in recorder.requests]
    assert called == [
        "POST /v1/sessions",
        "GET /v1/sessions/s1",
        "POST /v1/sessions/s1/frames",
        "POST /v1/sessions/s1/forecast",
        "POST /v1/sessions/s1/reset",
        "POST /v1/sessions/s1/fork",
        "GET /v1/sessions/s1/state",
        "PUT /v1/sessions/s2/state",
        "DELETE /v1/sessions/a%2Fb",
    ]


def test_a_text_from_creation_to_deletion() -> None:
    words = {"tokens": [3, 4], "text": " c d", "reason": "stop"}
    ids = {"tokens": [3], "reason": "length"}
    recorder = Recorder(ok(SESSION, 201), ok({}), ok({}), ok(words), ok(ids), ok({}, 204))
    with recorder.client() as client:
        assert client.create_text("a b", model="m") == "s1"
        assert recorder.body() == {"prompt": "a b", "model": "m"}
        client.append_tokens("s1", 0, (1, 2))
        assert recorder.body() == {"seq": 0, "tokens": [1, 2]}
        client.append_tokens("s1", 1, "c")
        assert recorder.body() == {"seq": 1, "text": "c"}
        made = client.generate("s1", 9, temperature=0.5, stop=("d", 7), seed=1)
        assert made == Generated((3, 4), " c d", "stop")
        expected = {"max_tokens": 9, "temperature": 0.5, "stop": ["d", 7], "seed": 1}
        assert recorder.body() == expected
        assert client.generate("s1") == Generated((3,), None, "length")
        assert recorder.body() == {"max_tokens": 64}
        client.delete_session("s1")
    called = [f"{r.method} {r.url.path}" for r in recorder.requests]
    assert called[:4] == [
        "POST /v1/sessions",
        "POST /v1/sessions/s1/tokens",
        "POST /v1/sessions/s1/tokens",
        "POST /v1/sessions/s1/generate",
    ]


def test_a_text_may_begin_with_nothing() -> None:
    recorder = Recorder(ok(SESSION, 201))
    with recorder.client() as client:
        client.create_text()
    assert recorder.body() == {}


def test_a_forgotten_duplicate_says_so() -> None:
    recorder = Recorder(ok({"type": "ack", "of": "frames.append", "session": "s1", "seq": 0}))
    with recorder.client() as client, pytest.raises(ReplyLostError):
        client.append("s1", 0, 1.0)


def test_what_is_refused_for_now_is_tried_again() -> None:
    busy = refusal(429, "overloaded", retryable=True)
    recorder = Recorder(busy, httpx.ConnectError("down"), ok({"models": []}))
    with recorder.client() as client:
        assert client.models() == {"models": []}
    assert recorder.pauses == pytest.approx([0.1, 0.2])
    recorder = Recorder(busy, busy, busy)
    with recorder.client() as client, pytest.raises(OverloadedError):
        client.models()


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.create_session(),
        lambda client: client.create_text([1]),
        lambda client: client.generate("s1"),
        lambda client: client.fork("s1"),
    ],
    ids=["create_session", "create_text", "generate", "fork"],
)
def test_what_would_be_done_twice_is_not_repeated_when_the_answer_is_lost(
    call: Callable[[RestClient], object],
) -> None:
    recorder = Recorder(httpx.ReadError("cut"))
    with recorder.client() as client, pytest.raises(ConnectionFailedError) as caught:
        call(client)
    assert len(recorder.requests) == 1
    assert "http://server:1/v1/sessions" in str(caught.value)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "session_not_found", NotFoundError),
        (409, "seq_gap", ConflictError),
        (500, "numerical_fault", ServerError),
        (418, "new_code", ServerError),
    ],
)
def test_errors_have_their_class_and_details(
    status: int, code: str, kind: type[ServerError]
) -> None:
    with Recorder(refusal(status, code)).client() as client, pytest.raises(kind) as caught:
        client.session("s1")
    assert (caught.value.code, caught.value.message) == (code, "no")
    assert caught.value.details == {"expected_seq": 3}
    assert str(caught.value) == f"no [{code}]"


@pytest.mark.parametrize("content", [b"<html>", b"[]", b"{}"])
def test_an_error_in_no_known_form_is_a_protocol_error(content: bytes) -> None:
    recorder = Recorder(httpx.Response(502, content=content))
    with recorder.client() as client, pytest.raises(ProtocolError):
        client.models()


def test_readiness() -> None:
    recorder = Recorder(ok({}), refusal(503, "draining"), httpx.ConnectError("down"))
    with recorder.client() as client:
        assert [client.ready() for _ in range(3)] == [True, False, False]
