"""The application factory."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

import kssm
from kssm.runtime import Engine
from service import schemas
from service.body_limit import BodyLimit
from service.core import Service
from service.errors import install_error_handlers
from service.openapi import install_openapi
from service.routes import forecast, health, sessions, stream, texts
from service.settings import Settings

DESCRIPTION = "Send a signal's samples, get a calibrated forecast back after every frame."


def create_app(settings: Settings, engine: Engine | None = None) -> FastAPI:
    """The service as an ASGI app; its lifespan starts and stops engine and store.

    ``engine`` replaces the one built from the settings' model and device; not started yet.
    """
    app = FastAPI(
        title="KSSM",
        version=kssm.__version__,
        description=DESCRIPTION,
        lifespan=_lifespan,
        redirect_slashes=False,
        responses={"4XX": {"model": schemas.ErrorBody}, "5XX": {"model": schemas.ErrorBody}},
    )
    app.state.service = Service(settings, engine)
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["*"],
            allow_headers=["*"],
        )
    for module in (health, forecast, sessions, texts, stream):
        app.include_router(module.router)
    install_error_handlers(app)
    install_openapi(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None]:
    service: Service = app.state.service
    try:
        await service.start()
        yield
    finally:
        await service.stop()
