"""The periodic job that keeps the folder of renditions within its size, and to those that have rows."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog

from service.dependencies.outages import QUEUE, STORAGE, level_of
from service.errors import ServiceError
from service.queue.jobs import UNAVAILABLE
from service.renditions.queries import (
    EvictionCandidate,
    delete_evicted,
    list_least_recently_used,
    list_orphans,
    sum_bytes,
    update_sizes,
)
from service.storage.interface import StorageUnavailable
from service.telemetry.metrics import metrics
from worker.resources import Resources

log = structlog.get_logger("worker")

# Down to this part of the size, so that not every rendition pushes another out.
_KEPT_PART = 0.9
_AT_ONCE = 1000
_MOST_PAGES = 100
_ABANDONED_S = 3600
# One folder is compared with the rows in each run. This key counts the runs of all workers.
NEXT_FOLDER = "daguerre:renditions:next_folder"


async def evict_renditions(ctx: dict[str, Any]) -> None:
    """Those that were asked for least recently go first."""
    worker: Resources = ctx["resources"]
    try:
        await asyncio.to_thread(worker.renditions.remove_stale_drafts, _ABANDONED_S)
        await _evict(worker)
        await worker.storage.require_available()  # or the database, which says what belongs there, is another one's
        await _check_folder(worker, await _take_folder(worker))
    except StorageUnavailable as error:
        STORAGE.report(error)
    except (ServiceError, OSError) as error:  # what it needs is away
        log.log(level_of(error), "eviction.put_off", error=repr(error))


async def _take_folder(worker: Resources) -> int:
    try:
        run: int = await worker.redis.incr(NEXT_FOLDER)
    except UNAVAILABLE as error:
        QUEUE.report(error)
        raise ServiceError("queue-unavailable") from error
    return (run - 1) % worker.renditions.num_shards


async def _evict(worker: Resources) -> None:
    async with worker.database.connection() as connection:
        kept = await sum_bytes(connection)
    if kept <= worker.renditions_size:
        return
    evicted = stuck = 0
    excess = kept - int(worker.renditions_size * _KEPT_PART)
    for _ in range(_MOST_PAGES):
        if excess <= 0:
            break
        async with worker.database.connection() as connection:
            oldest = await list_least_recently_used(connection, _AT_ONCE, skip=stuck)
        going = _choose(oldest, excess)
        if not going:
            break
        # The row outlives the file, so that none is forgotten that is still there.
        failures = await asyncio.to_thread(worker.renditions.remove, [rendition.key for rendition in going])
        gone = [rendition for rendition in going if rendition.key not in failures]
        async with worker.database.connection() as connection:
            await delete_evicted(connection, gone)
        excess -= sum(rendition.size for rendition in gone)
        evicted += len(gone)
        stuck += len(failures)  # they stay the oldest: younger ones go in their place
    metrics.renditions_evicted.inc(evicted)
    log.info("renditions.evicted", renditions=evicted, not_removed=stuck, bytes_before=kept)


def _choose(oldest: Sequence[EvictionCandidate], excess: int) -> list[EvictionCandidate]:
    """The first of them, until their sizes reach the excess."""
    chosen = []
    for rendition in oldest:
        if excess <= 0:
            break
        excess -= rendition.size
        chosen.append(rendition)
    return chosen


async def _check_folder(worker: Resources, shard: int) -> None:
    """Remove files whose row was lost, since they would be evicted never, and correct the sizes in the others."""
    sizes = list((await asyncio.to_thread(worker.renditions.list_shard, shard, _ABANDONED_S)).items())
    for at in range(0, len(sizes), _AT_ONCE):
        part = dict(sizes[at : at + _AT_ONCE])
        async with worker.database.connection() as connection:
            unknown = await list_orphans(connection, list(part))
            await update_sizes(connection, part)
        failures = await asyncio.to_thread(worker.renditions.remove, unknown)
        if len(unknown) > len(failures):
            log.info("renditions.unknown_removed", renditions=len(unknown) - len(failures))
