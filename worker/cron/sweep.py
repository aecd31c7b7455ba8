"""The periodic job that finishes what a process left half done."""

from __future__ import annotations

from typing import Any

import structlog

from service.database import Connection
from service.deletion.removals import Removal, list_removals, remove_files
from service.dependencies.outages import STORAGE, level_of
from service.errors import ServiceError
from service.ids import ImageId
from service.images.idempotency import release_expired_keys
from service.images.integrity import find_sha256
from service.images.queries import OverdueImage, is_any_known, list_overdue
from service.images.updates import purge_failed
from service.storage.identity import find_id
from service.storage.interface import OriginalStorage, StorageUnavailable
from service.telemetry.metrics import metrics
from worker.resources import Resources

log = structlog.get_logger("worker")

# An idle worker takes a job at once: one that waits for this long was lost, or stands in a queue that knows its id.
_OVERDUE_S = 10
# Longer than any upload may take (settings.upload_timeout_s), and than a row's insert after it.
_ABANDONED_S = 3600
# Whoever ended the row removes the file at once; what is left after this was left by one that died.
_REMOVAL_S = 30
_TELL_FAILURE_S = 24 * 3600
_AT_ONCE = 500
_MOST_PAGES = 40


async def sweep(ctx: dict[str, Any]) -> None:
    """Each step is bounded, and costs what is unfinished, not what is stored; one that fails stops no other."""
    worker: Resources = ctx["resources"]
    for step in (_enqueue_overdue, _settle_abandoned, _remove_files, _forget_failures, _forget_keys):
        try:
            await step(worker)
        except StorageUnavailable as error:
            STORAGE.report(error)
        except (ServiceError, OSError) as error:  # what it needs is away
            log.log(level_of(error), "sweep.put_off", step=step.__name__, error=repr(error))
        except Exception:
            log.exception("sweep.failed", step=step.__name__)


async def _enqueue_overdue(worker: Resources) -> None:
    """All of them, also behind those that stand in the queue still: after a lost queue that is the whole backlog."""
    last: OverdueImage | None = None
    seen = enqueued = 0
    for _ in range(_MOST_PAGES):
        async with worker.database.connection() as connection:
            overdue = await list_overdue(connection, _OVERDUE_S, _AT_ONCE, last)
        if overdue:
            last = overdue[-1]
            seen += len(overdue)
            enqueued += await worker.jobs.enqueue_again({image.id: image.account_id for image in overdue})
        if len(overdue) < _AT_ONCE:
            break
    metrics.sweep_enqueued.inc(enqueued)
    if seen:
        log.info("sweep.overdue", images=seen, enqueued=enqueued)


async def _settle_abandoned(worker: Resources) -> None:
    """A received file goes to its place if its row was committed, and away if not.

    Files that cannot be moved or removed stay in the folder, so each page skips the pages before. Of a storage that is
    not known to the database, or is beside a database without images, every file is one without a row: they stay.
    """
    seen: set[ImageId] = set()
    accepted: set[ImageId] = set()
    removed: set[ImageId] = set()
    failures: dict[ImageId, OSError] = {}
    for _ in range(_MOST_PAGES):
        abandoned = await worker.storage.list_stale_uploads(_ABANDONED_S, _AT_ONCE, skip=seen)
        if abandoned:
            seen.update(abandoned)
            async with worker.database.connection() as connection:
                existing = await find_sha256(connection, abandoned)
                may_remove = await _is_own(connection, worker.storage)
            failures |= await worker.storage.reconcile(existing)
            accepted.update(existing)
            if may_remove:
                rest = [image_id for image_id in abandoned if image_id not in existing]
                failures |= await worker.storage.remove_stale_uploads(rest)
                removed.update(rest)
        if len(abandoned) < _AT_ONCE:
            break
    if failures:
        image_id, error = next(iter(failures.items()))
        log.warning("sweep.not_settled", files=len(failures), image_id=image_id, first_error=repr(error))
    if accepted - failures.keys() or removed - failures.keys():
        log.info("sweep.settled", kept=len(accepted - failures.keys()), removed=len(removed - failures.keys()))


async def _is_own(connection: Connection, storage: OriginalStorage) -> bool:
    """Whether the storage, which was there a moment ago, is the one of a database that has images."""
    storage_id = await find_id(connection)
    return storage_id is not None and storage_id == storage.id and await is_any_known(connection)


async def _remove_files(worker: Resources) -> None:
    """All of them, also behind those that cannot be removed."""
    last: Removal | None = None
    for _ in range(_MOST_PAGES):
        async with worker.database.connection() as connection:
            removals = await list_removals(connection, _REMOVAL_S, _AT_ONCE, last)
        if removals:
            last = removals[-1]
            await worker.storage.require_available()
            image_ids = [removal.image_id for removal in removals]
            await remove_files(worker.database, worker.storage, worker.renditions, image_ids)
        if len(removals) < _AT_ONCE:
            break


async def _forget_failures(worker: Resources) -> None:
    for _ in range(_MOST_PAGES):
        async with worker.database.connection() as connection:
            purged = await purge_failed(connection, _TELL_FAILURE_S, _AT_ONCE)
        if purged < _AT_ONCE:
            break


async def _forget_keys(worker: Resources) -> None:
    for _ in range(_MOST_PAGES):
        async with worker.database.connection() as connection:
            forgotten = await release_expired_keys(connection, _AT_ONCE)
        if forgotten < _AT_ONCE:
            break
