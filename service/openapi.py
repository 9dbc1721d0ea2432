"""The OpenAPI document: what FastAPI finds out, and the bodies that routes parse themselves."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from service import schemas

_BODIES: Final = (
    schemas.ForecastRequest,
    schemas.SessionCreate,
    schemas.Frames,
    schemas.ForecastOptions,
    schemas.Tokens,
    schemas.GenerateOptions,
)
_PREFIX: Final = "#/components/schemas/{model}"


def install_openapi(app: FastAPI) -> None:
    """Serve the completed document, made on first use."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    _, bodies = models_json_schema([(body, "validation") for body in _BODIES], ref_template=_PREFIX)
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(bodies["$defs"])
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{}, {"key": []}]
    return document
