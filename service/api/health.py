"""Probes, capabilities and metrics. Liveness never touches the engine: a slow engine is no reason to kill us."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from anyio import to_thread
from fastapi import APIRouter
from starlette.responses import Response

from service.api.gateway import SharedGateway
from service.api.problems import problem_responses
from service.capabilities import capabilities
from service.errors import ModelNotReady
from service.telemetry import metrics

router = APIRouter()


@router.get("/health/live", tags=["health"], summary="The process answers")
async def live() -> dict[str, str]:
    return {"status": "live"}


@router.get(
    "/health/ready",
    tags=["health"],
    summary="The engine answers a canary inference",
    responses=problem_responses(ModelNotReady),
)
async def ready(gateway: SharedGateway) -> dict[str, str]:
    await gateway.readiness.check()
    return {"status": "ready", "bundle": gateway.engine.bundle.identity}


@router.get("/capabilities", tags=["service"], summary="Formats, bundle, modalities and limits of this gateway")
async def show_capabilities(gateway: SharedGateway) -> dict[str, Any]:
    others = [engine.bundle for engine in gateway.others]
    return capabilities(gateway.engine.bundle, gateway.settings, others)


@router.get("/metrics", tags=["service"], summary="Prometheus metrics", response_class=Response)
async def show_metrics(gateway: SharedGateway) -> Response:
    with suppress(ModelNotReady):
        await gateway.readiness.check()  # so that tags_engine_up is true where nobody asks for readiness
    return Response(await to_thread.run_sync(gateway.metrics.text), media_type=metrics.CONTENT_TYPE)
