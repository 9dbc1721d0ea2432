"""What routes ask FastAPI for: the service, the tenant and a strictly parsed body."""

from __future__ import annotations

from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from kssm.errors import InvalidInputError
from service.auth import bearer
from service.core import Service
from service.errors import invalid
from service.wire import dumps, loads

M = TypeVar("M", bound=BaseModel)


def get_service(request: Request) -> Service:
    """The service of this app."""
    return request.app.state.service


def get_tenant(request: Request) -> str:
    """The tenant whose key came with the request. Raises ``UnauthorizedError``."""
    return get_service(request).auth.tenant(bearer(request.headers.get("authorization")))


ServiceDep = Annotated[Service, Depends(get_service)]
TenantDep = Annotated[str, Depends(get_tenant)]


class JsonBody(Generic[M]):
    """Reads the body as strict JSON, whatever its content type; an empty one is an empty object.

    Raises ``InvalidInputError`` (`invalid_json`, `invalid_request`).
    """

    def __init__(self, model: type[M]) -> None:
        self.model = model

    async def __call__(self, request: Request) -> M:
        """The validated body."""
        raw = await request.body()
        body = loads(raw) if raw else {}
        if type(body) is not dict:
            raise InvalidInputError("the body is a JSON object")
        try:
            return self.model.model_validate(body)
        except ValidationError as error:
            raise invalid(error, "invalid_request") from None


def json_response(body: object, status: int = 200) -> Response:
    """Strict JSON; arrays are lists, NaN is null."""
    return Response(dumps(body), status, media_type="application/json")


def documented(model: type[BaseModel]) -> dict[str, Any]:
    """What ``JsonBody`` reads, for a route's ``openapi_extra``."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    required = any(field.is_required() for field in model.model_fields.values())
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": required, "content": content}}
