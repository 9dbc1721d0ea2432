from __future__ import annotations

import json

from fastapi import FastAPI

from service.settings import Settings
from tests.service.fakes import until
from tests.service.rest import KEYS, serve


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
