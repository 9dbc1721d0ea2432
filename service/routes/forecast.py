"""Forecasts of whole series, without a session."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import Response

from kssm.errors import InvalidInputError, NotFoundError
from kssm.forecast.anomaly import Alarm, score_from_tail
from kssm.runtime import Prediction
from service import samples, schemas
from service.core import Service
from service.dependencies import JsonBody, ServiceDep, TenantDep, documented, json_response
from service.limits import check_query, check_size
from service.samples import Float64
from service.sessions import Clock
from service.wire import quantile_map

router = APIRouter(tags=["forecast"])
Body = Annotated[schemas.ForecastRequest, Depends(JsonBody(schemas.ForecastRequest))]


@router.post(
    "/v1/forecast",
    summary="Forecast a batch of series",
    response_model=schemas.ForecastResponse,
    openapi_extra=documented(schemas.ForecastRequest),
)
async def forecast(service: ServiceDep, _: TenantDep, body: Body) -> Response:
    """Series may differ in length; null is a missing sample."""
    began = time.perf_counter()
    if body.model not in {None, service.manager.model}:
        raise NotFoundError("there is no such model", code="model_not_found")
    levels = _levels(service, body)
    wanted = tuple(sorted({*levels, 0.5}))
    prediction = await _predict(service, body, wanted)
    values = prediction.quantiles.transpose(0, 2, 1)
    forecasts = [
        _forecast(series, levels, wanted, result)
        for series, result in zip(body.series, values, strict=True)
    ]
    for entry, alarm in zip(forecasts, prediction.alarms, strict=bool(prediction.alarms)):
        entry["anomaly"] = _anomaly(alarm)
    service.metrics.batch(time.perf_counter() - began)
    return json_response({"model": service.manager.model, "forecasts": forecasts})


def _levels(service: Service, body: schemas.ForecastRequest) -> tuple[float, ...]:
    if len(body.series) > service.settings.max_series:
        raise InvalidInputError(f"a request has at most {service.settings.max_series} series")
    return check_query(service.settings, len(body.series), body.horizon, body.quantiles)


async def _predict(
    service: Service, body: schemas.ForecastRequest, levels: Sequence[float]
) -> Prediction:
    columns = [samples.column(series.values) for series in body.series]
    if body.anomaly:
        check_size(service.settings, 3 * sum(map(len, columns)))
    steps = [
        _steps(series, len(column)) for series, column in zip(body.series, columns, strict=True)
    ]
    future = service.engine.predict(columns, body.horizon, levels, steps, watched=body.anomaly)
    return await asyncio.wrap_future(future)


def _steps(series: schemas.Series, count: int) -> Float64 | None:
    if series.timestamps is None:
        return None
    return Clock().advance(samples.timestamps(series.timestamps), count)[0]


def _forecast(
    series: schemas.Series, levels: Sequence[float], wanted: Sequence[float], result: Float64
) -> dict[str, object]:
    by_level = dict(zip(wanted, result.copy(), strict=True))
    quantiles = quantile_map(levels, [by_level[level] for level in levels])
    return {"id": series.id, "mean": by_level[0.5], "quantiles": quantiles}


def _anomaly(alarm: Alarm) -> dict[str, Float64]:
    """One number a sample each."""
    return {
        "score": score_from_tail(alarm.probability),
        "tail_probability": alarm.probability,
        "surprise": alarm.surprise,
    }
