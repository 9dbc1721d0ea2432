"""A started app and a client for it, without a network."""

from __future__ import annotations

import hashlib
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI

from service.app import create_app
from service.settings import Settings
from tests.service.fakes import FakeEngine

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


def error(response: httpx.Response) -> tuple[int, str]:
    body = response.json()
    assert set(body) == {"error"}
    assert {"code", "message", "retryable"} <= set(body["error"])
    return response.status_code, body["error"]["code"]


async def create(client: httpx.AsyncClient, **fields) -> str:
    response = await client.post("/v1/sessions", json=fields)
    assert response.status_code == 201, response.text
    return response.json()["session_id"]
