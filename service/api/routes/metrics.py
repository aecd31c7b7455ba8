"""`/metrics`: the metrics of all processes on this host, for Prometheus."""

from __future__ import annotations

import asyncio
from functools import partial

from aiohttp import web

from service.api.resources import RESOURCES, Resources
from service.dependencies.watch import Dependency
from service.errors import ServiceError
from service.telemetry.gauges import ServiceState
from service.telemetry.metrics import CONTENT_TYPE, QueueState, metrics

_QUEUE_TIMEOUT_S = 1
_CHECK_TIMEOUT_S = 1


async def show(request: web.Request) -> web.Response:
    """GET /metrics, without a key: it shows nothing about single accounts or images."""
    service = request.app[RESOURCES]
    try:
        body = await service.metrics_scrape.get(partial(_scrape, service))
    except TimeoutError as error:
        raise ServiceError("busy", "The metrics took too long to collect; try again shortly.") from error
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"})


async def _scrape(service: Resources) -> bytes:
    queue, state = await asyncio.gather(_measure_queue(service), _measure_state(service))
    metrics.requests.flush()
    return await asyncio.to_thread(metrics.render, queue, state)


async def _measure_state(service: Resources) -> ServiceState:
    names = list(service.dependencies)
    (disks, stored), up = await asyncio.gather(
        service.usage.measure(), asyncio.gather(*(_is_up(service.dependencies[name]) for name in names))
    )
    return ServiceState(dict(zip(names, up, strict=True)), disks, stored)


async def _is_up(dependency: Dependency) -> bool:
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            return await dependency.find_problem() is None
    except TimeoutError:
        return False


async def _measure_queue(service: Resources) -> QueueState | None:
    if not service.ingest.results.connected:
        return None
    try:
        return await asyncio.wait_for(service.jobs.measure(), _QUEUE_TIMEOUT_S)
    except (ServiceError, TimeoutError):
        return None
