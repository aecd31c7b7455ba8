"""The periodic job that limits the size of all renditions, and removes files without rows."""

from __future__ import annotations

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

# Evicts down to this share of the maximum, so that not every new rendition evicts another one.
_TARGET_SHARE = 0.9
BATCH_SIZE = 1000
_MAX_BATCHES = 100
_ABANDONED_S = 3600
# Each run compares one folder with the rows. This Redis key counts the runs of all workers.
NEXT_FOLDER = "daguerre:renditions:next_folder"


async def evict_renditions(ctx: dict[str, Any], *, batch_size: int = BATCH_SIZE) -> None:
    """Evicts the least recently used renditions first."""
    worker: Resources = ctx["resources"]
    try:
        await worker.renditions.remove_stale_drafts(_ABANDONED_S)
        await _evict(worker, batch_size)
        if worker.renditions.num_shards:
            await worker.storage.require_available()  # otherwise the rows may be those of another storage
            await _check_folder(worker, await _next_folder(worker), batch_size)
    except StorageUnavailable as error:
        STORAGE.report(error)
    except (ServiceError, OSError) as error:  # a dependency is unavailable
        log.log(level_of(error), "eviction.deferred", error=repr(error))


async def _next_folder(worker: Resources) -> int:
    try:
        run: int = await worker.redis.incr(NEXT_FOLDER)
    except UNAVAILABLE as error:
        QUEUE.report(error)
        raise ServiceError("queue-unavailable") from error
    return (run - 1) % worker.renditions.num_shards


async def _evict(worker: Resources, batch_size: int) -> None:
    async with worker.database.connection() as connection:
        total_bytes = await sum_bytes(connection)
    if total_bytes <= worker.renditions_size:
        return
    evicted = stuck = 0
    excess = total_bytes - int(worker.renditions_size * _TARGET_SHARE)
    for _ in range(_MAX_BATCHES):
        if excess <= 0:
            break
        async with worker.database.connection() as connection:
            oldest = await list_least_recently_used(connection, batch_size, skip=stuck)
        candidates = _choose(oldest, excess)
        if not candidates:
            break
        # The row is deleted after the file, so that no file remains without a row.
        failures = await worker.renditions.remove([rendition.key for rendition in candidates])
        removed = [rendition for rendition in candidates if rendition.key not in failures]
        async with worker.database.connection() as connection:
            await delete_evicted(connection, removed)
        excess -= sum(rendition.size for rendition in removed)
        evicted += len(removed)
        stuck += len(failures)  # they remain the oldest, so newer ones are evicted in their place
    metrics.renditions_evicted.inc(evicted)
    log.info("renditions.evicted", renditions=evicted, not_removed=stuck, bytes_before=total_bytes)


def _choose(oldest: Sequence[EvictionCandidate], excess: int) -> list[EvictionCandidate]:
    """Returns the first ones, until the sum of their sizes reaches the excess."""
    chosen = []
    for rendition in oldest:
        if excess <= 0:
            break
        excess -= rendition.size
        chosen.append(rendition)
    return chosen


async def _check_folder(worker: Resources, shard: int, batch_size: int) -> None:
    """Removes files without a row, which would never be evicted, and corrects the sizes in the rows of the others."""
    sizes = list((await worker.renditions.list_shard(shard, _ABANDONED_S)).items())
    for start in range(0, len(sizes), batch_size):
        batch = dict(sizes[start : start + batch_size])
        async with worker.database.connection() as connection:
            unknown = await list_orphans(connection, list(batch))
            await update_sizes(connection, batch)
        failures = await worker.renditions.remove(unknown)
        if len(unknown) > len(failures):
            log.info("renditions.unknown_removed", renditions=len(unknown) - len(failures))
