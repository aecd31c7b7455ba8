"""The job of every image: probe it in a decoder, write the result to its row, and reply to the upload that waits."""

from __future__ import annotations

import logging
from typing import Any

import asyncpg
import structlog
from arq import Retry

from service.deletion.removals import remove_files
from service.dependencies.outages import STORAGE, level_of
from service.errors import ServiceError
from service.ids import ImageId
from service.images.models import Image
from service.images.pending import FILE_MISSING, count_crash, find_pending_age_s, mark_failed
from service.images.probe import Rejected
from service.images.queries import load_image
from service.telemetry.metrics import metrics
from service.uploads.ingest import ProbeResult
from worker.resources import Resources
from worker.sandbox.decoder import DecoderFailed
from worker.sandbox.process import DecoderStalled, DecoderUnavailable

log = structlog.get_logger("worker")

# The first crash of a decoder may be due to a machine short of memory. The second one is blamed on the picture.
_MAX_CRASHES = 1
RETRY_S = 2
# A decoder that stalls on a file that the worker can read may have waited for a disk that hung. After this many
# attempts the picture is blamed.
_MAX_STALLED_TRIES = 20
# PostgreSQL refuses the result of a probe: the fault of the decoder or of the picture.
_INVALID_RESULT = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)
# A missing file may be on a disk that is mounted again later.
RETRY_MISSING_S = 30
_MISSING_TIMEOUT_S = 3600


async def probe_image(ctx: dict[str, Any], image_id: ImageId, *, request_id: str) -> ProbeResult:
    """Runs at least once for each image, so the image may be finished or deleted already.

    If a dependency is unavailable, the job is retried, and the picture is never blamed. It is not blamed for an
    unexpected error either: the sweep enqueues the image again.
    """
    worker: Resources = ctx["resources"]
    if ctx["job_try"] == 1:
        metrics.queue_wait.observe(max(0.0, ctx["waited_s"]))
    with structlog.contextvars.bound_contextvars(request_id=request_id, image_id=image_id):
        try:
            return ProbeResult(image_id, await _finish(worker, image_id, ctx.get("account", ""), ctx["job_try"]))
        except (ServiceError, DecoderUnavailable, OSError) as error:
            if isinstance(error, OSError):
                STORAGE.report(error)
            level = logging.DEBUG if isinstance(error, OSError) else level_of(error)
            log.log(level, "probe.deferred", error=repr(error))
            raise Retry(defer=RETRY_S) from error


async def _finish(worker: Resources, image_id: ImageId, account: str, tries: int) -> Image | None:
    """Returns the finished row, or None if the image was deleted. `tries` includes this one."""
    try:
        probe = await worker.probers.probe(*await worker.storage.paths_for_decoding(image_id), account=account)
        image = await worker.probe_results.submit((image_id, probe))
    except Rejected as error:
        log.info("probe.refused", code=error.code, kind=error.kind)
        image = await _fail(worker, image_id, error.code, error.kind)
    except FileNotFoundError:
        if not await worker.storage.find_missing([image_id]):
            raise  # the storage was unavailable
        return await _handle_missing_file(worker, image_id)
    except (DecoderFailed, DecoderStalled, *_INVALID_RESULT) as error:
        if isinstance(error, DecoderStalled) and tries < _MAX_STALLED_TRIES:
            raise
        log.warning("probe.failed", error=repr(error))
        image = await _count_crash(worker, image_id)
    return image or await _load(worker, image_id)


async def _handle_missing_file(worker: Resources, image_id: ImageId) -> Image | None:
    async with worker.database.connection() as connection:
        age_s = await find_pending_age_s(connection, image_id)
    if age_s is None:
        return await _load(worker, image_id)
    log.error("probe.file_missing", age_s=round(age_s))
    if age_s < _MISSING_TIMEOUT_S:
        raise Retry(defer=RETRY_MISSING_S)
    return await _fail(worker, image_id, FILE_MISSING)


async def _count_crash(worker: Resources, image_id: ImageId) -> Image | None:
    async with worker.database.connection() as connection:
        crashes = await count_crash(connection, image_id)
    if 0 < crashes <= _MAX_CRASHES:
        raise Retry(defer=RETRY_S)
    return await _fail(worker, image_id, "probe-failed")


async def _load(worker: Resources, image_id: ImageId) -> Image | None:
    async with worker.database.connection() as connection:
        return await load_image(connection, image_id)


async def _fail(worker: Resources, image_id: ImageId, code: str, kind: str | None = None) -> Image | None:
    """Writes the error code to the row and removes the file. Returns the row, or None if the image was finished.

    If the local copy was damaged, the picture is not blamed: it is fetched and probed again.
    """
    if code != FILE_MISSING and await worker.storage.drop_damaged_copy(image_id):
        raise Retry(defer=RETRY_S)
    async with worker.database.connection() as connection:
        image = await mark_failed(connection, image_id, code, kind)
    if image is not None:
        metrics.count_probe_failure(code)
    if image is not None and code != FILE_MISSING:
        await remove_files(worker.database, worker.storage, worker.renditions, [image_id])
    return image
