"""`/metrics`: the numbers of all processes on this host, for Prometheus."""

from __future__ import annotations

import asyncio
from functools import partial

from aiohttp import web

from service.api.resources import Resources, resources
from service.errors import ServiceError
from service.telemetry.metrics import CONTENT_TYPE, QueueState, metrics

_QUEUE_TIMEOUT_S = 1


async def show(request: web.Request) -> web.Response:
    """GET /metrics. Without a key: it tells nothing of accounts and images."""
    service = resources(request)
    try:
        body = await service.scraping.get(partial(_scrape, service))
    except TimeoutError as error:
        raise ServiceError("busy", "The metrics take too long to put together; try again shortly.") from error
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"})


async def _scrape(service: Resources) -> bytes:
    return await asyncio.to_thread(metrics.render, await _measure_queue(service))


async def _measure_queue(service: Resources) -> QueueState | None:
    if not service.replies.connected:
        return None
    try:
        return await asyncio.wait_for(service.jobs.measure(), _QUEUE_TIMEOUT_S)
    except (ServiceError, TimeoutError):
        return None
