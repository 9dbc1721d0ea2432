from __future__ import annotations

import hashlib
import json
import math
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI

from kssm.errors import KSSMError
from service.app import create_app
from service.settings import Settings
from tests.service.fakes import FakeEngine, until

ABSENT = "0" * 32
KEYS = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("ann", "bob")}


@asynccontextmanager
async def serve(settings: Settings, engine: FakeEngine | None = None):
    """An app within its lifespan."""
    app = create_app(settings, engine or FakeEngine())
    async with app.router.lifespan_context(app):
        yield app


def connect(app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://kssm")


@pytest.fixture
async def client(settings):
    async with serve(settings) as app, connect(app) as made:
        yield made


def error(response: httpx.Response) -> tuple[int, str]:
    body = response.json()
    assert set(body) == {"error"}
    assert {"code", "message", "retryable"} <= set(body["error"])
    return response.status_code, body["error"]["code"]


async def create(client: httpx.AsyncClient, **fields) -> str:
    response = await client.post("/v1/sessions", json=fields)
    assert response.status_code == 201, response.text
    return response.json()["session_id"]


async def test_health(client):
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    assert (await client.get("/readyz")).json() == {"status": "ready"}
    metrics = await client.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    assert "kssm_sessions 0.0" in metrics.text
    models = (await client.get("/v1/models")).json()["models"]
    assert [model["id"] for model in models] == ["kssm-signal-base"]


async def test_a_stopping_server_is_alive_but_not_ready(settings):
    async with serve(settings) as app, connect(app) as client:
        session = await create(client)
        await app.state.service.drain()
        assert (await client.get("/healthz")).status_code == 200
        assert error(await client.get("/readyz")) == (503, "draining")
        assert error(await client.post("/v1/sessions", json={})) == (503, "draining")
        frame = {"seq": 0, "values": [[1.0]]}
        late = await client.post(f"/v1/sessions/{session}/frames", json=frame)
        assert error(late) == (503, "draining")
        assert late.json()["error"]["retryable"] is True


async def test_forecast_of_series_of_different_lengths(client):
    request = {
        "series": [
            {"id": "a", "values": [1, None, 2.5]},
            {"id": 7, "values": [4]},
            {"values": [0]},
        ],
        "horizon": 2,
        "quantiles": [0.9, 0.1],
    }
    response = await client.post("/v1/forecast", json=request)
    assert response.json() == {
        "model": "kssm-signal-base",
        "forecasts": [
            {"id": "a", "mean": [4.0] * 2, "quantiles": {"0.1": [3.6] * 2, "0.9": [4.4] * 2}},
            {"id": 7, "mean": [4.5] * 2, "quantiles": {"0.1": [4.1] * 2, "0.9": [4.9] * 2}},
            {"id": None, "mean": [0.5] * 2, "quantiles": {"0.1": [0.1] * 2, "0.9": [0.9] * 2}},
        ],
    }


async def test_forecast_defaults(client):
    body = (await client.post("/v1/forecast", json={"series": [{"values": [1.0]}]})).json()
    quantiles = body["forecasts"][0]["quantiles"]
    assert list(quantiles) == ["0.1", "0.5", "0.9"]
    assert {len(values) for values in quantiles.values()} == {24}
    assert body["forecasts"][0]["mean"] == quantiles["0.5"]


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"series": []}, (422, "invalid_request")),
        ({"series": None}, (422, "invalid_request")),
        ({"series": [{}]}, (422, "invalid_request")),
        ({"series": [{"values": [], "id": "a"}]}, (400, "empty_frame")),
        ({"series": [{"values": "1"}]}, (400, "invalid_message")),
        ({"series": [{"values": [1e31]}]}, (400, "value_out_of_range")),
        ({"series": [{"values": [1, 2], "timestamps": [2, 1]}]}, (400, "invalid_timestamps")),
        ({"horizon": 0}, (400, "invalid_horizon")),
        ({"horizon": 1025}, (400, "invalid_horizon")),
        ({"horizon": "2"}, (422, "invalid_request")),
        ({"horizon": 2.0}, (422, "invalid_request")),
        ({"horizon": True}, (422, "invalid_request")),
        ({"quantiles": [0.0]}, (400, "invalid_quantiles")),
        ({"quantiles": []}, (400, "invalid_quantiles")),
        ({"quantiles": [0.5, 0.5]}, (400, "invalid_quantiles")),
        ({"model": "other"}, (404, "model_not_found")),
        ({"unknown": 1}, (422, "invalid_request")),
    ],
)
async def test_bad_forecast_requests(client, changes, answer):
    request = {"series": [{"values": [1.0]}], **changes}
    assert error(await client.post("/v1/forecast", json=request)) == answer


async def test_the_number_of_series_is_limited():
    async with serve(Settings(max_series=2)) as app, connect(app) as client:
        request = {"series": [{"values": [1.0]}] * 3}
        assert error(await client.post("/v1/forecast", json=request)) == (422, "invalid_request")


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff\xfe",
        b'{"series": [{"values": [NaN]}]}',
        b'{"series": [{"values": [Infinity]}]}',
        b'{"series": [{"values": [1e999]}]}',
        b"[" * 100_000,
        b'{"horizon": ' + b"9" * 5000 + b"}",
    ],
)
async def test_what_is_not_strict_json_is_refused(client, body):
    for path in ("/v1/forecast", "/v1/sessions", f"/v1/sessions/{ABSENT}/frames"):
        assert error(await client.post(path, content=body)) == (400, "invalid_json")


async def test_a_session_over_rest(client):
    created = await client.post(
        "/v1/sessions", json={"channels": 2, "horizon": 1, "quantiles": [0.5], "prompt": [[1, 2]]}
    )
    assert created.status_code == 201
    info = created.json()
    session = info["session_id"]
    path = f"/v1/sessions/{session}"
    assert info == {
        "session_id": session,
        "model": "kssm-signal-base",
        "channels": 2,
        "horizon": 1,
        "quantiles": [0.5],
        "sample_interval": None,
        "next_seq": 0,
    }
    assert (await client.get(path)).json() == info
    frame = {"seq": 0, "values": [[3.0, None], [4.0, -10.0]]}
    reply = await client.post(f"{path}/frames", json=frame)
    assert reply.json() == {
        "session": session,
        "seq": 0,
        "horizon": 1,
        "quantiles": {"0.5": [[8.5], [-7.5]]},
        "anomaly": [
            {"score": -math.log10(0.5), "tail_probability": 0.5},
            {"score": None, "tail_probability": None},
        ],
    }
    assert (await client.post(f"{path}/frames", json=frame)).content == reply.content
    gap = await client.post(f"{path}/frames", json={"seq": 5, "values": [[1, 1]]})
    assert error(gap) == (409, "seq_gap")
    assert gap.json()["error"]["expected_seq"] == 1
    ahead = await client.post(f"{path}/forecast", json={"horizon": 2, "quantiles": [0.25]})
    assert ahead.json()["quantiles"] == {"0.25": [[8.25, 9.25], [-7.75, -6.75]]}
    assert (await client.post(f"{path}/forecast")).json()["horizon"] == 1
    assert (await client.post(f"{path}/reset")).json()["next_seq"] == 1
    deleted = await client.delete(path)
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert error(await client.get(path)) == (404, "session_not_found")


async def test_a_forgotten_duplicate_is_acknowledged(client):
    session = await create(client)
    path = f"/v1/sessions/{session}/frames"
    for seq in range(34):
        await client.post(path, json={"seq": seq, "values": [[1.0]]})
    old = await client.post(path, json={"seq": 0, "values": [[1.0]]})
    assert old.json() == {"type": "ack", "session": session, "seq": 0, "of": "frames.append"}


async def test_fork_and_state(client):
    one, other = await create(client), await create(client)
    path = f"/v1/sessions/{one}"
    await client.post(f"{path}/frames", json={"seq": 0, "values": [[5.0]]})
    forked = await client.post(f"{path}/fork")
    assert forked.status_code == 201
    assert forked.json()["next_seq"] == 0
    state = await client.get(f"{path}/state")
    assert state.headers["content-type"] == "application/vnd.safetensors"
    put = await client.put(f"/v1/sessions/{other}/state", content=state.content)
    assert put.json()["next_seq"] == 0
    forecasts = [
        (await client.post(f"/v1/sessions/{name}/forecast")).json()["quantiles"]
        for name in (one, other, forked.json()["session_id"])
    ]
    assert forecasts[0] == forecasts[1] == forecasts[2]
    assert error(await client.put(f"{path}/state", content=b"junk")) == (400, "state_malformed")
    bent = state.content[:-1] + bytes([state.content[-1] ^ 1])
    assert error(await client.put(f"{path}/state", content=bent)) == (400, "state_signature")
    wide = await create(client, channels=2)
    wrong = await client.put(f"/v1/sessions/{wide}/state", content=state.content)
    assert error(wrong) == (409, "state_mismatch")


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({"seq": 0}, (422, "invalid_request")),
        ({"seq": "0", "values": [[1.0]]}, (422, "invalid_request")),
        ({"seq": -1, "values": [[1.0]]}, (400, "invalid_message")),
        ({"seq": 0, "values": [[1.0]], "more": 1}, (422, "invalid_request")),
        ({"seq": 0, "values": [[1.0, 2.0]]}, (400, "wrong_shape")),
        ({"seq": 0, "values": [["1"]]}, (400, "invalid_message")),
        ({"seq": 0, "values": "@"}, (400, "invalid_message")),
        ({"seq": 0, "values": [[2e30]]}, (400, "value_out_of_range")),
        ({"seq": 0, "values": []}, (400, "empty_frame")),
        ({"seq": 0, "values": [[1.0]], "timestamps": []}, (400, "invalid_timestamps")),
    ],
)
async def test_bad_frames(client, fields, answer):
    session = await create(client)
    response = await client.post(f"/v1/sessions/{session}/frames", json=fields)
    assert error(response) == answer
    assert (await client.get(f"/v1/sessions/{session}")).json()["next_seq"] == 0


async def test_unknown_routes_and_methods(client):
    assert error(await client.get("/v1/nothing")) == (404, "not_found")
    wrong = await client.put("/v1/forecast")
    assert error(wrong) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


async def test_a_body_is_limited_while_it_arrives():
    async def endless():
        sent = 0
        while sent < 10_000:
            sent += 100
            yield b" " * 100
        raise AssertionError("the server reads on")

    async with serve(Settings(max_body_bytes=1000)) as app, connect(app) as client:
        for path in ("/v1/forecast", "/v1/sessions"):
            big = await client.post(path, content=b" " * 1001)
            assert error(big) == (413, "message_too_large")
            assert error(await client.post(path, content=endless())) == (413, "message_too_large")
        fits = await client.post("/v1/sessions", content=b" " * 997 + b"{}")
        assert fits.status_code == 201


async def test_a_client_that_leaves_while_it_sends_is_no_error(settings, caplog):
    async with serve(settings) as app:
        sent: list[dict] = []
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/sessions",
            "query_string": b"",
            "headers": [],
        }

        async def receive():
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        await app(scope, receive, send)
        assert sent[0]["status"] == 400
        assert app.state.service.manager.sessions == 0
    assert not caplog.records


async def test_an_unexpected_failure_is_internal(settings, caplog, monkeypatch):
    engine = FakeEngine()
    monkeypatch.setattr(engine, "predict", lambda *args: 1 / 0)
    async with serve(settings, engine) as app, connect(app) as client:
        response = await client.post("/v1/forecast", json={"series": [{"values": [1]}]})
        assert error(response) == (500, "internal")
        assert response.json()["error"]["message"] == "internal error"
        assert "ZeroDivisionError" in caplog.text
        assert 'kssm_errors_total{code="internal"} 1.0' in (await client.get("/metrics")).text


async def test_tenants(settings):
    async with serve(Settings(api_keys=KEYS)) as app, connect(app) as client:
        ann, bob = ({"authorization": f"Bearer {name}"} for name in ("ann", "bob"))
        created = await client.post("/v1/sessions", json={}, headers=ann)
        session = created.json()["session_id"]
        assert error(await client.post("/v1/sessions", json={})) == (401, "unauthorized")
        wrong = await client.get(f"/v1/sessions/{session}", headers={"authorization": "Bearer x"})
        assert error(wrong) == (401, "unauthorized")
        assert wrong.headers["www-authenticate"] == "Bearer"
        assert (await client.get(f"/v1/sessions/{session}", headers=ann)).status_code == 200
        frame = {"seq": 0, "values": [[1.0]]}
        for method, suffix, body in (
            ("GET", "", None),
            ("DELETE", "", None),
            ("POST", "/frames", frame),
            ("POST", "/forecast", {}),
            ("POST", "/reset", None),
            ("POST", "/fork", None),
            ("GET", "/state", None),
            ("PUT", "/state", None),
        ):
            answers = [
                await client.request(method, f"/v1/sessions/{name}{suffix}", json=body, headers=bob)
                for name in (session, ABSENT)
            ]
            assert answers[0].status_code == 404
            assert answers[0].content == answers[1].content
            assert answers[0].headers == answers[1].headers
        assert (await client.get("/healthz")).status_code == 200
        assert error(await client.get("/v1/models")) == (401, "unauthorized")


async def test_pages_of_other_origins(settings):
    async with serve(Settings(allowed_origins=("http://page",))) as app, connect(app) as client:
        for origin, answer in (("http://page", "http://page"), ("http://other", None)):
            response = await client.get("/healthz", headers={"origin": origin})
            assert response.headers.get("access-control-allow-origin") == answer


async def open_stream(app: FastAPI, url: str, headers: dict[str, str], *texts: str) -> list:
    """What the app sends to a WebSocket that sends ``texts`` and then leaves."""
    path, _, query = url.partition("?")
    scope = {
        "type": "websocket",
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "subprotocols": [],
        "app": app,
    }
    sent: list[dict] = []
    incoming = [{"type": "websocket.connect"}]
    incoming += [{"type": "websocket.receive", "text": text} for text in texts]

    async def receive():
        if incoming:
            return incoming.pop(0)
        await until(lambda: len(sent) > len(texts))
        return {"type": "websocket.disconnect", "code": 1000}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    assert sent.pop(0)["type"] == "websocket.accept"
    return sent


PING = '{"type":"keepalive"}'


async def test_the_stream_needs_a_key():
    async with serve(Settings(api_keys=KEYS)) as app:
        for headers in ({}, {"authorization": "Bearer nobody"}):
            (closed,) = await open_stream(app, "/v1/stream", headers)
            assert (closed["type"], closed["code"]) == ("websocket.close", 1008)
        for url, headers in (
            ("/v1/stream?api_key=ann", {}),
            ("/v1/stream", {"authorization": "Bearer ann"}),
        ):
            (reply,) = await open_stream(app, url, headers, PING)
            assert json.loads(reply["text"]) == {"type": "ack", "of": "keepalive"}


async def test_the_stream_refuses_pages_of_other_origins(settings):
    async with serve(settings) as app:
        headers = {"host": "kssm", "origin": "http://elsewhere"}
        (closed,) = await open_stream(app, "/v1/stream", headers)
        assert closed["code"] == 1008
        (reply,) = await open_stream(
            app, "/v1/stream", {"host": "kssm", "origin": "http://kssm"}, PING
        )
        assert reply["type"] == "websocket.send"


async def test_the_stream_closes_on_too_big_a_message():
    async with serve(Settings(max_message_bytes=10)) as app:
        (closed,) = await open_stream(app, "/v1/stream", {}, PING)
        assert closed["code"] == 1009


async def test_a_stopping_server_takes_no_streams(settings):
    async with serve(settings) as app:
        await app.state.service.drain()
        (closed,) = await open_stream(app, "/v1/stream", {})
        assert closed["code"] == 1012


async def test_the_lifespan_starts_and_stops_engine_and_store(tmp_path):
    engine = FakeEngine()
    async with serve(Settings(store=tmp_path), engine) as app, connect(app) as client:
        assert engine.started
        await create(client)
    assert engine.closed
    async with serve(Settings(store=tmp_path)) as app, connect(app) as client:
        assert "kssm_sessions 1.0" in (await client.get("/metrics")).text


async def test_a_start_that_fails_leaves_nothing_open(tmp_path):
    (tmp_path / "file").write_text("")
    engine = FakeEngine()
    with pytest.raises(KSSMError) as caught:
        async with serve(Settings(store=tmp_path / "file" / "store"), engine):
            raise AssertionError("it started")
    assert caught.value.code == "store_unavailable"
    assert not engine.started


async def test_openapi_is_complete(client):
    document = (await client.get("/openapi.json")).json()
    assert "/v1/sessions/{session_id}/frames" in document["paths"]
    schemas = document["components"]["schemas"]
    for name in ("ForecastRequest", "SessionCreate", "Frames", "ForecastOptions"):
        assert schemas[name]["examples"]
    text = json.dumps(document)
    for reference in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert reference in schemas
