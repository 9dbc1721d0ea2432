from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from kssm.errors import KSSMError
from service import schemas
from service.errors import STATUS
from service.settings import Settings
from tests.service.fakes import FakeEngine
from tests.service.rest import ABSENT, connect, create, error, serve


def _examples(model: type[BaseModel]) -> list[dict]:
    return model.model_json_schema()["examples"]


async def test_health(client):
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    assert (await client.get("/readyz")).json() == {"status": "ready"}
    metrics = await client.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    assert "kssm_sessions 0.0" in metrics.text
    models = (await client.get("/v1/models")).json()["models"]
    assert [model["id"] for model in models] == ["kssm-signal-base"]


async def test_a_server_without_its_engine_is_neither_alive_nor_ready(settings):
    engine = FakeEngine()
    async with serve(settings, engine) as app, connect(app) as client:
        engine.alive = False
        for path in ("/healthz", "/readyz"):
            assert error(await client.get(path)) == (500, "internal")


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


@pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"{}"'])
async def test_a_body_is_an_object(client, body):
    response = await client.post("/v1/sessions", content=body)
    assert error(response) == (422, "invalid_request")
    assert response.json()["error"]["message"] == "the body is a JSON object"


async def test_a_path_is_not_redirected(client):
    assert error(await client.post("/v1/sessions/", json={})) == (404, "not_found")


async def test_a_browser_finds_the_interactive_api(client):
    response = await client.get("/")
    assert (response.status_code, response.headers["location"]) == (307, "/docs")
    page = await client.get("/docs")
    assert (page.status_code, "/openapi.json" in page.text) == (200, True)


async def test_the_settings_page_names_every_metric(client):
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")
    told = re.findall(r"^# TYPE (\w+) ", (await client.get("/metrics")).text, re.MULTILINE)
    names = {name.removesuffix("_created") for name in told}
    assert {"kssm_frames_total", "kssm_engine_step_ms"} <= names
    missing = {name for name in names if f"`{name}`" not in page and f"`{name}_total`" not in page}
    assert missing == set()


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
    monkeypatch.setattr(engine, "predict", lambda *_, **__: 1 / 0)
    async with serve(settings, engine) as app, connect(app) as client:
        response = await client.post("/v1/forecast", json={"series": [{"values": [1]}]})
        assert error(response) == (500, "internal")
        assert response.json()["error"]["message"] == "internal error"
        assert "ZeroDivisionError" in caplog.text
        assert 'kssm_errors_total{code="internal"} 1.0' in (await client.get("/metrics")).text


async def test_pages_of_other_origins(settings):
    async with serve(Settings(allowed_origins=("http://page",))) as app, connect(app) as client:
        for origin, answer in (("http://page", "http://page"), ("http://other", None)):
            response = await client.get("/healthz", headers={"origin": origin})
            assert response.headers.get("access-control-allow-origin") == answer


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
    components = document["components"]["schemas"]
    for name in ("ForecastRequest", "SessionCreate", "Frames", "ForecastOptions", "Ack"):
        assert components[name]["examples"]
    codes = components["ErrorDetail"]["properties"]["code"]["description"]
    assert all(code in codes for code in STATUS)
    posts = {path: item["post"] for path, item in document["paths"].items() if "post" in item}
    wanted = {path for path, post in posts.items() if post.get("requestBody", {}).get("required")}
    session = "/v1/sessions/{session_id}"
    assert wanted == {"/v1/forecast", f"{session}/frames", f"{session}/tokens"}
    text = json.dumps(document)
    for reference in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert reference in components


@pytest.mark.parametrize(
    "model",
    [
        schemas.ForecastRequest,
        schemas.ForecastResponse,
        schemas.SessionCreate,
        schemas.SessionInfo,
        schemas.Frames,
        schemas.SessionForecast,
        schemas.Ack,
        schemas.ForecastOptions,
        schemas.ErrorDetail,
    ],
)
def test_examples_fit_their_schema(model):
    for example in _examples(model):
        model.model_validate(example, strict=True)


async def test_request_examples_work(client):
    session = await create(client)
    for path, model in (
        ("/v1/forecast", schemas.ForecastRequest),
        ("/v1/sessions", schemas.SessionCreate),
        (f"/v1/sessions/{session}/frames", schemas.Frames),
        (f"/v1/sessions/{session}/forecast", schemas.ForecastOptions),
    ):
        for example in _examples(model):
            answer = await client.post(path, json=example)
            assert answer.is_success, (path, example, answer.text)
