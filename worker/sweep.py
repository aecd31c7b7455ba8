"""The periodic job that finishes what a process left half done."""

from __future__ import annotations

from typing import Any

import structlog

from service.images import clear_removals, list_existing, list_overdue, list_removals, purge_failed
from worker.resources import Resources

log = structlog.get_logger("worker")

# An idle worker takes a job at once: one that waits for this long was lost, or stands in a queue that knows its id.
_OVERDUE_S = 10
# Longer than any upload may take (settings.upload_timeout_s), and than a row's insert after it.
_ABANDONED_S = 3600
_REMOVAL_S = 30
_TELL_FAILURE_S = 24 * 3600
_AT_ONCE = 500


async def sweep(ctx: dict[str, Any]) -> None:
    """Each step is bounded, and costs what is unfinished, not what is stored."""
    worker: Resources = ctx["resources"]
    await _enqueue_overdue(worker)
    await _settle_abandoned(worker)
    await _remove_files(worker)
    async with worker.database.connection() as connection:
        await purge_failed(connection, _TELL_FAILURE_S, _AT_ONCE)


async def _enqueue_overdue(worker: Resources) -> None:
    async with worker.database.connection() as connection:
        overdue = await list_overdue(connection, _OVERDUE_S, _AT_ONCE)
    if overdue:
        log.info("sweep.enqueued_again", images=len(overdue))
        await worker.jobs.enqueue_again(overdue)


async def _settle_abandoned(worker: Resources) -> None:
    """A received file goes to its place if its row was committed, and away if not."""
    abandoned = await worker.storage.list_abandoned(_ABANDONED_S, _AT_ONCE)
    if not abandoned:
        return
    async with worker.database.connection() as connection:
        existing = await list_existing(connection, abandoned)
    for image_id in abandoned:
        if image_id in existing:
            await worker.storage.keep(image_id)
        else:
            await worker.storage.discard(image_id)
    log.info("sweep.settled", kept=len(existing), removed=len(abandoned) - len(existing))


async def _remove_files(worker: Resources) -> None:
    async with worker.database.connection() as connection:
        removals = await list_removals(connection, _REMOVAL_S, _AT_ONCE)
    if not removals:
        return
    for image_id in removals:
        await worker.storage.remove(image_id)
    async with worker.database.connection() as connection:
        await clear_removals(connection, removals)
