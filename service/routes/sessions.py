"""Sessions over REST: the same operations as over the WebSocket, one request each."""

from __future__ import annotations

import time
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from service import schemas
from service.core import Service
from service.dependencies import JsonBody, ServiceDep, TenantDep, documented, json_response
from service.sessions import Reply, Status
from service.wire import forecast_body, parse_frame

STATE_TYPE: Final = "application/vnd.safetensors"
_STATE_CONTENT: Final = {STATE_TYPE: {"schema": {"type": "string", "format": "binary"}}}

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])
Create = Annotated[schemas.SessionCreate, Depends(JsonBody(schemas.SessionCreate))]
Frames = Annotated[schemas.Frames, Depends(JsonBody(schemas.Frames))]
Options = Annotated[schemas.ForecastOptions, Depends(JsonBody(schemas.ForecastOptions))]


@router.post(
    "",
    summary="Create a session",
    status_code=201,
    response_model=schemas.SessionInfo,
    openapi_extra=documented(schemas.SessionCreate),
)
async def create(service: ServiceDep, tenant: TenantDep, body: Create) -> Response:
    """A stream of one or more channels, with its history so far if there is one."""
    return _info(service, await service.manager.create(tenant, body), 201)


@router.get("/{session_id}", summary="Look at a session", response_model=schemas.SessionInfo)
async def get(service: ServiceDep, tenant: TenantDep, session_id: str) -> Response:
    """Its settings and the ``seq`` it expects next."""
    return _info(service, await service.manager.get(tenant, session_id))


@router.delete("/{session_id}", summary="Delete a session", status_code=204)
async def delete(service: ServiceDep, tenant: TenantDep, session_id: str) -> Response:
    """Its state is forgotten everywhere."""
    await service.manager.delete(tenant, session_id)
    return Response(status_code=204)


@router.post(
    "/{session_id}/frames",
    summary="Append samples, get the forecast after them",
    response_model=schemas.SessionForecast | schemas.Ack,
    openapi_extra=documented(schemas.Frames),
)
async def append(service: ServiceDep, tenant: TenantDep, session_id: str, body: Frames) -> Response:
    """``seq`` must be the expected one; an earlier one is answered again and not applied."""
    began = time.perf_counter()
    frame = parse_frame(body.seq, body.values, body.timestamps)
    reply = await service.manager.append(tenant, session_id, frame)
    service.metrics.posted(time.perf_counter() - began)
    return _reply(session_id, reply)


@router.post(
    "/{session_id}/forecast",
    summary="Forecast without a new sample",
    response_model=schemas.SessionForecast,
    openapi_extra=documented(schemas.ForecastOptions),
)
async def forecast(
    service: ServiceDep, tenant: TenantDep, session_id: str, body: Options
) -> Response:
    """``seq`` is the last one applied, -1 before the first."""
    reply = await service.manager.forecast(tenant, session_id, body.horizon, body.quantiles)
    return _reply(session_id, reply)


@router.post("/{session_id}/reset", summary="Reset a session", response_model=schemas.SessionInfo)
async def reset(service: ServiceDep, tenant: TenantDep, session_id: str) -> Response:
    """The signal is forgotten; ``seq`` runs on."""
    return _info(service, await service.manager.reset(tenant, session_id))


@router.post(
    "/{session_id}/fork",
    summary="Copy a session",
    status_code=201,
    response_model=schemas.SessionInfo,
)
async def fork(service: ServiceDep, tenant: TenantDep, session_id: str) -> Response:
    """A new session that continues from the same state; its ``seq`` starts at 0."""
    return _info(service, await service.manager.fork(tenant, session_id), 201)


@router.get(
    "/{session_id}/state",
    summary="Export the state",
    response_class=Response,
    responses={200: {"content": _STATE_CONTENT}},
)
async def get_state(service: ServiceDep, tenant: TenantDep, session_id: str) -> Response:
    """Signed safetensors; good for any session of this tenant with this model and channels."""
    blob = await service.manager.export_state(tenant, session_id)
    return Response(blob, media_type=STATE_TYPE)


@router.put(
    "/{session_id}/state",
    summary="Import a state",
    response_model=schemas.SessionInfo,
    openapi_extra={"requestBody": {"required": True, "content": _STATE_CONTENT}},
)
async def put_state(
    service: ServiceDep, tenant: TenantDep, session_id: str, request: Request
) -> Response:
    """Checked in full before anything changes; ``seq`` runs on."""
    blob = await request.body()
    return _info(service, await service.manager.import_state(tenant, session_id, blob))


def _info(service: Service, session: Status, status: int = 200) -> Response:
    body = {
        "session_id": session.id,
        "model": service.manager.model,
        "channels": session.settings.channels,
        "horizon": session.settings.horizon,
        "quantiles": session.settings.quantiles,
        "sample_interval": session.settings.sample_interval,
        "next_seq": session.next_seq,
    }
    return json_response(body, status)


def _reply(session_id: str, reply: Reply) -> Response:
    if reply.result is None:
        body: dict[str, object] = {"session": session_id, "seq": reply.seq, "of": "frames.append"}
        return json_response({"type": "ack", **body})
    return json_response(forecast_body(session_id, reply.seq, reply.result))
