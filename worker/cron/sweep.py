"""The periodic job that finishes what other processes left unfinished."""

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
from service.images.pending import purge_failed
from service.images.queries import OverdueImage, is_any_known, list_overdue
from service.storage.identity import find_id
from service.storage.interface import OriginalStorage, StorageUnavailable
from service.telemetry.metrics import metrics
from worker.resources import Resources

log = structlog.get_logger("worker")

# An idle worker starts a job immediately. After this time the job is lost, or still in the queue, which then ignores a
# second one.
_OVERDUE_S = 10
# Longer than any upload may take (settings.upload_timeout_s) together with the insertion of its row.
_ABANDONED_S = 3600
# The process that deletes a row removes the file immediately. After this time that process has crashed.
_REMOVAL_S = 30
_FAILED_ROW_S = 24 * 3600
BATCH_SIZE = 500
_MAX_BATCHES = 40


async def sweep(ctx: dict[str, Any], *, batch_size: int = BATCH_SIZE) -> None:
    """Runs each step, also if an earlier one fails. Steps are bounded, and their cost depends on what is unfinished,
    not on what is stored.
    """
    worker: Resources = ctx["resources"]
    for step in (_enqueue_overdue, _reconcile_abandoned, _remove_files, _delete_failed_rows, _delete_expired_keys):
        try:
            await step(worker, batch_size)
        except StorageUnavailable as error:
            STORAGE.report(error)
        except (ServiceError, OSError) as error:  # a dependency is unavailable
            log.log(level_of(error), "sweep.deferred", step=step.__name__, error=repr(error))
        except Exception:
            log.exception("sweep.failed", step=step.__name__)


async def _enqueue_overdue(worker: Resources, batch_size: int) -> None:
    """Enqueues all overdue images that are not in the queue. If the queue was lost, this is the whole backlog."""
    last: OverdueImage | None = None
    seen = enqueued = 0
    for _ in range(_MAX_BATCHES):
        async with worker.database.connection() as connection:
            overdue = await list_overdue(connection, _OVERDUE_S, batch_size, last)
        if overdue:
            last = overdue[-1]
            seen += len(overdue)
            enqueued += await worker.jobs.enqueue_again({image.id: image.account_id for image in overdue})
        if len(overdue) < batch_size:
            break
    metrics.sweep_enqueued.inc(enqueued)
    if seen:
        log.info("sweep.overdue", images=seen, enqueued=enqueued)


async def _reconcile_abandoned(worker: Resources, batch_size: int) -> None:
    """Publishes a received file if its row was committed, and removes it if not.

    Files that cannot be moved or removed stay in the folder, so each batch skips those of earlier batches. Nothing is
    removed if the database does not know this storage or has no images, because then no file has a row.
    """
    seen: set[ImageId] = set()
    published: set[ImageId] = set()
    removed: set[ImageId] = set()
    failures: dict[ImageId, OSError] = {}
    for _ in range(_MAX_BATCHES):
        abandoned = await worker.storage.list_stale_uploads(_ABANDONED_S, batch_size, skip=seen)
        if abandoned:
            seen.update(abandoned)
            async with worker.database.connection() as connection:
                existing = await find_sha256(connection, abandoned)
                may_remove = await _belongs_to(connection, worker.storage)
            failures |= await worker.storage.reconcile(existing)
            published.update(existing)
            if may_remove:
                unknown = [image_id for image_id in abandoned if image_id not in existing]
                failures |= await worker.storage.remove_stale_uploads(unknown)
                removed.update(unknown)
        if len(abandoned) < batch_size:
            break
    if failures:
        image_id, error = next(iter(failures.items()))
        log.warning("sweep.reconcile_failed", files=len(failures), image_id=image_id, first_error=repr(error))
    published -= failures.keys()
    removed -= failures.keys()
    if published or removed:
        log.info("sweep.reconciled", published=len(published), removed=len(removed))


async def _belongs_to(connection: Connection, storage: OriginalStorage) -> bool:
    """Returns whether the storage belongs to this database, and the database has images."""
    storage_id = await find_id(connection)
    return storage_id is not None and storage_id == storage.id and await is_any_known(connection)


async def _remove_files(worker: Resources, batch_size: int) -> None:
    """Removes the files of deleted and failed images. Continues after files that cannot be removed."""
    last: Removal | None = None
    for _ in range(_MAX_BATCHES):
        async with worker.database.connection() as connection:
            removals = await list_removals(connection, _REMOVAL_S, batch_size, last)
        if removals:
            last = removals[-1]
            await worker.storage.require_available()
            image_ids = [removal.image_id for removal in removals]
            await remove_files(worker.database, worker.storage, worker.renditions, image_ids)
        if len(removals) < batch_size:
            break


async def _delete_failed_rows(worker: Resources, batch_size: int) -> None:
    for _ in range(_MAX_BATCHES):
        async with worker.database.connection() as connection:
            deleted = await purge_failed(connection, _FAILED_ROW_S, batch_size)
        if deleted < batch_size:
            break


async def _delete_expired_keys(worker: Resources, batch_size: int) -> None:
    for _ in range(_MAX_BATCHES):
        async with worker.database.connection() as connection:
            deleted = await release_expired_keys(connection, batch_size)
        if deleted < batch_size:
            break
