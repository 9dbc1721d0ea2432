"""Language sessions over REST: what they do beyond the sessions of signals."""

from __future__ import annotations

import asyncio
import threading
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from service import schemas
from service.dependencies import JsonBody, ServiceDep, TenantDep, documented, json_response

router = APIRouter(prefix="/v1/sessions", tags=["texts"])
Tokens = Annotated[schemas.Tokens, Depends(JsonBody(schemas.Tokens))]
Options = Annotated[schemas.GenerateOptions, Depends(JsonBody(schemas.GenerateOptions))]


@router.post(
    "/{session_id}/tokens",
    summary="Append text or tokens",
    response_model=schemas.TokensAck,
    openapi_extra=documented(schemas.Tokens),
)
async def append(service: ServiceDep, tenant: TenantDep, session_id: str, body: Tokens) -> Response:
    """``seq`` must be the expected one; an earlier one is answered again and not applied."""
    reply = await service.texts.append(tenant, session_id, body)
    named = {"type": "ack", "of": "tokens.append", "session": session_id, "seq": reply.seq}
    return json_response(named)


@router.post(
    "/{session_id}/generate",
    summary="Let the model go on",
    response_model=schemas.Generation,
    openapi_extra=documented(schemas.GenerateOptions),
)
async def generate(
    service: ServiceDep, tenant: TenantDep, session_id: str, request: Request, body: Options
) -> Response:
    """Answered when the text ends; whoever hangs up ends it. Token by token: the WebSocket."""
    flag = threading.Event()
    text = service.texts.generate(tenant, session_id, body, flag)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait([text, gone], return_when=asyncio.FIRST_COMPLETED)
        if not text.done():
            flag.set()
        result = await text
    finally:
        flag.set()
        gone.cancel()
    named: dict[str, object] = {
        "session": session_id,
        "tokens": list(result.tokens),
        "reason": result.reason,
    }
    vocabulary = service.texts.vocabulary
    words = None if vocabulary is None else vocabulary.text(result.tokens)
    return json_response(named if words is None else {**named, "text": words})


async def _gone(request: Request) -> None:
    """Return when the caller has hung up; to be used once the body was read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
