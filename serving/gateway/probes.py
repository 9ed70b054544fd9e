"""`/health`, `/ready`, `/metrics`."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from serving.engine.base import EngineState
from serving.engine.metrics import merge_metrics
from serving.gateway.state import Gateway

_RETRY_AFTER_S = 2


def probes_router(gateway: Gateway) -> APIRouter:
    """The routes, bound to `gateway`."""
    router = APIRouter(tags=["probes"])

    @router.get("/health")
    async def health() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @router.get("/ready")
    async def ready() -> JSONResponse:
        """200 when an engine is ready; 503 with Retry-After otherwise, `failed` when none will come back by itself."""
        engines = [
            {
                "name": engine.name,
                "base": engine.base_name,
                "state": engine.status.state.value,
                "detail": engine.status.detail,
                "restarts": engine.status.restarts,
                "pid": engine.status.pid,
                "slots": engine.slots,
            }
            for engine in gateway.fleet.engines
        ]
        states = {engine.status.state for engine in gateway.fleet.engines}
        is_ready = EngineState.READY in states
        status = "ready" if is_ready else "failed" if states == {EngineState.FAILED} else "starting"
        return JSONResponse(
            {"status": status, "engines": engines},
            status_code=200 if is_ready else 503,
            headers={} if is_ready else {"retry-after": str(_RETRY_AFTER_S)},
        )

    @router.get("/metrics")
    async def metrics() -> Response:
        """Prometheus text: the gateway's metrics, then the engines' own with a label `engine_name`."""
        own = _exposition(gateway)
        scraped = await asyncio.gather(*(engine.scrape_metrics() for engine in gateway.fleet.engines))
        named = dict(zip((engine.name for engine in gateway.fleet.engines), scraped, strict=True))
        merged = await asyncio.to_thread(merge_metrics, named)
        return Response(own + merged, media_type=CONTENT_TYPE_LATEST)

    return router


def _exposition(gateway: Gateway) -> bytes:
    gateway.fleet.measure(gateway.metrics)
    return gateway.metrics.exposition()
