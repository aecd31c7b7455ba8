"""`/healthz` (this process answers) and `/readyz` (an upload would work)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeAlias

from aiohttp import web

from service.api.resources import Resources, resources
from service.api.shared_calls import SharedCall

Check: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


async def alive(_: web.Request) -> web.Response:
    return web.json_response({"status": "ok"}, headers={"Cache-Control": "no-store"})


async def ready(request: web.Request) -> web.Response:
    """GET /readyz: 200 if database, queue, storage and at least one worker work, else 503 that names what does not."""
    service = resources(request)
    checks: dict[str, Check] = {
        "database": partial(_database, service),
        "queue": partial(_queue, service),
        "storage": service.storage.check,
        "worker": partial(_worker, service),
    }
    results = await asyncio.gather(*(_passes(service.readiness[name], check) for name, check in checks.items()))
    report = {name: "ok" if passed else "unavailable" for name, passed in zip(checks, results, strict=True)}
    passed = all(results)
    return web.json_response(
        {"status": "ok" if passed else "unavailable", "checks": report},
        status=200 if passed else 503,
        headers={"Cache-Control": "no-store"} | ({} if passed else {"Retry-After": "1"}),
    )


async def _passes(shared: SharedCall[None], check: Check) -> bool:
    try:
        await shared.get(check)
    except Exception:
        return False
    return True


async def _database(service: Resources) -> None:
    async with service.database.connection() as connection:
        await connection.execute("select from accounts limit 1")


async def _queue(service: Resources) -> None:
    if not service.replies.connected:
        raise ConnectionError


async def _worker(service: Resources) -> None:
    if await service.jobs.count_workers() == 0:
        raise LookupError
