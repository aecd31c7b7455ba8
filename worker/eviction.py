"""The periodic job that keeps the folder of renditions within its size."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog

from service.delivery.rows import forget_evicted, list_oldest, sum_bytes
from service.errors import ServiceError
from service.metrics import metrics
from worker.resources import Resources

log = structlog.get_logger("worker")

# Down to this part of the size, so that not every rendition pushes another out.
_KEPT_PART = 0.9
_AT_ONCE = 1000
_MOST_PAGES = 100
_ABANDONED_S = 3600


async def evict_renditions(ctx: dict[str, Any]) -> None:
    """Those that were asked for least recently go first."""
    worker: Resources = ctx["resources"]
    try:
        await asyncio.to_thread(worker.renditions.remove_abandoned, _ABANDONED_S)
        await _evict(worker)
    except (ServiceError, OSError) as error:  # what it needs is away
        log.warning("eviction.put_off", error=repr(error))


async def _evict(worker: Resources) -> None:
    async with worker.database.connection() as connection:
        kept = await sum_bytes(connection)
    if kept <= worker.renditions_size:
        return
    evicted, excess = 0, kept - int(worker.renditions_size * _KEPT_PART)
    for _ in range(_MOST_PAGES):
        if excess <= 0:
            break
        async with worker.database.connection() as connection:
            oldest = await list_oldest(connection, _AT_ONCE)
        going = []
        for rendition in oldest:
            if excess <= 0:
                break
            excess -= rendition.size
            going.append(rendition)
        if not going:
            break
        # The row outlives the file, so that none is forgotten that is still there.
        await asyncio.to_thread(worker.renditions.remove, [rendition.key for rendition in going])
        async with worker.database.connection() as connection:
            await forget_evicted(connection, going)
        evicted += len(going)
    metrics.renditions_evicted.inc(evicted)
    log.info("renditions.evicted", renditions=evicted, bytes_before=kept)
