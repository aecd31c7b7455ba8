"""The job of every image: look at it in a child process, write down what was found, wake the request that waits."""

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
from service.images.probe import Rejected
from service.images.queries import load_image
from service.images.updates import FILE_MISSING, count_crash, find_pending_age_s, mark_failed
from service.telemetry.metrics import metrics
from service.uploads.ingest import ProbeResult
from worker.resources import Resources
from worker.sandbox.decoder import ChildLost
from worker.sandbox.process import ChildStalled, ChildUnavailable

log = structlog.get_logger("worker")

# A picture that took its child along once may have met a machine short of memory; twice is the picture.
_CRASHES_ALLOWED = 1
_RETRY_S = 2
# A child that does not read a file that the worker can read may have met a disk that hung; so often it is the picture.
_MAX_STALLED_TRIES = 20
# PostgreSQL's refusals of what a child found: its fault, or the picture's.
_UNKEEPABLE = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)
# A file that is missing may be on a disk that comes back.
_RETRY_MISSING_S = 30
_MISSING_S = 3600


async def probe_image(ctx: dict[str, Any], image_id: ImageId, *, request_id: str) -> ProbeResult:
    """Runs at least once for each image, so it may find the image finished or deleted.

    A dependency that is away puts the job off; it never counts against the picture. Nor does anything unexpected: the
    sweep enqueues the image again.
    """
    worker: Resources = ctx["resources"]
    if ctx["job_try"] == 1:
        metrics.queue_wait.observe(max(0.0, ctx["waited_s"]))
    with structlog.contextvars.bound_contextvars(request_id=request_id, image_id=image_id):
        try:
            return ProbeResult(image_id, await _finish(worker, image_id, ctx.get("account", ""), ctx["job_try"]))
        except (ServiceError, ChildUnavailable, OSError) as error:
            if isinstance(error, OSError):
                STORAGE.report(error)
            level = logging.DEBUG if isinstance(error, OSError) else level_of(error)
            log.log(level, "probe.put_off", error=repr(error))
            raise Retry(defer=_RETRY_S) from error


async def _finish(worker: Resources, image_id: ImageId, account: str, tries: int) -> Image | None:
    """The finished row; None if it was deleted. `tries` counts this one."""
    try:
        found = await worker.children.probe(*worker.storage.paths_for_decoding(image_id), account=account)
        image = await worker.findings.submit((image_id, found))
    except Rejected as refusal:
        log.info("probe.refused", code=refusal.code, kind=refusal.kind)
        image = await _fail(worker, image_id, refusal.code, refusal.kind)
    except FileNotFoundError:
        if not await worker.storage.find_missing([image_id]):
            raise  # it was the storage that was away
        return await _miss(worker, image_id)
    except (ChildLost, ChildStalled, *_UNKEEPABLE) as error:
        if isinstance(error, ChildStalled) and tries < _MAX_STALLED_TRIES:
            raise
        log.warning("probe.failed", error=repr(error))
        image = await _count_crash(worker, image_id)
    return image or await _load(worker, image_id)


async def _miss(worker: Resources, image_id: ImageId) -> Image | None:
    async with worker.database.connection() as connection:
        age_s = await find_pending_age_s(connection, image_id)
    if age_s is None:
        return await _load(worker, image_id)
    log.error("probe.file_missing", age_s=round(age_s))
    if age_s < _MISSING_S:
        raise Retry(defer=_RETRY_MISSING_S)
    return await _fail(worker, image_id, FILE_MISSING)


async def _count_crash(worker: Resources, image_id: ImageId) -> Image | None:
    async with worker.database.connection() as connection:
        crashes = await count_crash(connection, image_id)
    if 0 < crashes <= _CRASHES_ALLOWED:
        raise Retry(defer=_RETRY_S)
    return await _fail(worker, image_id, "probe-failed")


async def _load(worker: Resources, image_id: ImageId) -> Image | None:
    async with worker.database.connection() as connection:
        return await load_image(connection, image_id)


async def _fail(worker: Resources, image_id: ImageId, code: str, kind: str | None = None) -> Image | None:
    """Refuse the picture: the row tells why, and the file goes."""
    async with worker.database.connection() as connection:
        image = await mark_failed(connection, image_id, code, kind)
    if image is not None:
        metrics.count_probe_failure(code)
    if image is not None and code != FILE_MISSING:
        await remove_files(worker.database, worker.storage, worker.renditions, [image_id])
    return image
