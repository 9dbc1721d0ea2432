"""Is it alive, is it ready, how is it doing, what does it serve."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import RedirectResponse, Response

from kssm.errors import KSSMError
from service import schemas
from service.core import Service
from service.dependencies import ServiceDep, TenantDep, json_response
from service.errors import draining

router = APIRouter()


@router.get("/", include_in_schema=False)
async def root() -> RedirectResponse:
    """Who opens the server's address in a browser finds the interactive API."""
    return RedirectResponse("/docs")


@router.get("/healthz", summary="The process answers", tags=["health"])
async def healthz(service: ServiceDep) -> dict[str, str]:
    """200 as long as the process can serve requests; 500 `internal` once its engine has died."""
    _check_alive(service)
    return {"status": "ok"}


@router.get("/readyz", summary="New sessions are welcome", tags=["health"])
async def readyz(service: ServiceDep) -> dict[str, str]:
    """200; 503 `draining` once the server begins to stop, 500 `internal` if its engine has died."""
    if not service.ready:
        raise draining()
    _check_alive(service)
    return {"status": "ready"}


@router.get("/metrics", summary="Prometheus metrics", tags=["health"], response_class=Response)
async def metrics(service: ServiceDep) -> Response:
    """The text exposition format."""
    return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/models", response_model=schemas.Models, tags=["forecast"])
async def models(service: ServiceDep, _: TenantDep) -> Response:
    """The models that ``model`` may name."""
    vocabulary = service.engine.vocab_size
    model: dict[str, object] = {
        "id": service.manager.model,
        "kind": "forecaster" if vocabulary is None else "language",
        "fingerprint": service.engine.fingerprint,
        "max_channels": service.settings.max_channels,
        "max_horizon": service.settings.max_horizon,
    }
    if vocabulary is not None:
        limits = {"vocab_size": vocabulary, "max_tokens": service.settings.max_tokens}
        model |= {"max_channels": 1, "max_horizon": 0, **limits}
    return json_response({"models": [model]})


def _check_alive(service: Service) -> None:
    if not service.engine.alive:
        raise KSSMError("the engine stopped unexpectedly", code="internal")
