"""`/healthz` (this process responds) and `/readyz` (an upload would succeed)."""

from __future__ import annotations

import asyncio
from functools import partial

from aiohttp import web

from service.api.resources import RESOURCES, Resources
from service.errors import ServiceError

_NO_WORKER = "no worker has sent a heartbeat recently on this Redis and database number"
_QUEUE_NEEDED = "the heartbeats of workers are in the queue, which is unavailable"


async def alive(_: web.Request) -> web.Response:
    return web.json_response({"status": "ok"}, headers={"Cache-Control": "no-store"})


async def ready(request: web.Request) -> web.Response:
    """GET /readyz: 200 if an upload would succeed, otherwise 503 with what is unavailable and why."""
    service = request.app[RESOURCES]
    names = [*service.dependencies, "worker"]
    problems = await asyncio.gather(
        *(dependency.find_problem() for dependency in service.dependencies.values()), _find_worker_problem(service)
    )
    reasons = {name: problem for name, problem in zip(names, problems, strict=True) if problem is not None}
    report: dict[str, object] = {
        "status": "unavailable" if reasons else "ok",
        "checks": {name: "unavailable" if name in reasons else "ok" for name in names},
    }
    headers = {"Cache-Control": "no-store"}
    if reasons:
        report["reasons"] = reasons
        headers["Retry-After"] = "1"
    return web.json_response(report, status=503 if reasons else 200, headers=headers)


async def _find_worker_problem(service: Resources) -> str | None:
    try:
        workers = await service.worker_count.get(partial(service.jobs.count_workers))
    except (ServiceError, TimeoutError):
        return _QUEUE_NEEDED
    return None if workers else _NO_WORKER
