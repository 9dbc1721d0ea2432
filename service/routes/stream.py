"""The WebSocket: authorise, accept, hand over to ``service.connection``."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from kssm.errors import UnauthorizedError
from service.auth import bearer, origin_allowed
from service.connection import RESTART, Connection
from service.core import Service

POLICY, TOO_BIG = 1008, 1009

router = APIRouter()


@router.websocket("/v1/stream")
async def stream(websocket: WebSocket) -> None:
    """Many sessions on one connection; see ``docs/protocol.md``."""
    service: Service = websocket.app.state.service
    await websocket.accept()
    try:
        tenant = _authorise(service, websocket)
    except UnauthorizedError as error:
        service.metrics.error(error.code)
        await websocket.close(POLICY, error.message)
        return
    if not service.ready:
        await websocket.close(RESTART, "the server is stopping")
        return
    connection = Connection(
        service,
        tenant,
        receive=lambda: _receive(service, websocket),
        send=lambda data: _send(websocket, data),
        close=lambda code, reason: _close(websocket, code, reason),
    )
    service.connections.add(connection)
    try:
        await connection.run()
    finally:
        service.connections.discard(connection)


def _authorise(service: Service, websocket: WebSocket) -> str:
    headers = websocket.headers
    allowed = service.settings.allowed_origins
    if not origin_allowed(headers.get("origin"), headers.get("host"), allowed):
        raise UnauthorizedError("pages of this origin may not open a stream")
    key = bearer(headers.get("authorization")) or websocket.query_params.get("api_key")
    return service.auth.tenant(key)


async def _receive(service: Service, websocket: WebSocket) -> str | bytes | None:
    message = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        return None
    text: str | None = message.get("text")
    data: str | bytes = message["bytes"] if text is None else text
    if len(data) > service.settings.max_message_bytes:
        await _close(websocket, TOO_BIG, "the message is too big")
        return None
    return data


async def _send(websocket: WebSocket, data: str | bytes) -> None:
    if websocket.application_state is not WebSocketState.CONNECTED:
        return
    try:
        if isinstance(data, str):
            await websocket.send_text(data)
        else:
            await websocket.send_bytes(data)
    except WebSocketDisconnect:
        return


async def _close(websocket: WebSocket, code: int, reason: str) -> None:
    if websocket.application_state is WebSocketState.CONNECTED:
        try:
            await websocket.close(code, reason)
        except WebSocketDisconnect:
            return
