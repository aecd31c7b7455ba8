"""The job of every image: look at it in a child process, write down what was found, wake the request that waits."""

from __future__ import annotations

from typing import Any

import structlog
from arq import Retry

from service import replies
from service.database import Database
from service.errors import ServiceError
from service.ids import ImageId
from service.images import Image, count_crash, load_image, mark_failed
from service.probes import Probe, Rejected
from service.replies import Reply
from worker.children import ChildLost, ChildUnavailable
from worker.resources import Resources

log = structlog.get_logger("worker")

# A picture that took its child along once may have met a machine short of memory; twice is the picture.
_CRASHES_ALLOWED = 1
_RETRY_S = 2


async def probe_image(ctx: dict[str, Any], image_id: ImageId, *, reply_to: str, request_id: str) -> None:
    """Runs at least once for each image, so it may find the image finished or deleted.

    A dependency that is away puts the job off; it never counts against the picture.
    """
    worker: Resources = ctx["resources"]
    with structlog.contextvars.bound_contextvars(request_id=request_id, image_id=image_id):
        try:
            image = await _finish(worker, image_id)
        except (ServiceError, ChildUnavailable, OSError) as error:
            log.warning("probe.put_off", error=repr(error))
            raise Retry(defer=_RETRY_S) from error
        if reply_to:
            await replies.send(worker.redis, reply_to, Reply(image_id, image))


async def _finish(worker: Resources, image_id: ImageId) -> Image | None:
    """The finished row; None if it was deleted."""
    try:
        found = await _look(worker, image_id)
    except Rejected as refusal:
        log.info("probe.refused", code=refusal.code)
        image = await _fail(worker.database, image_id, refusal.code)
    except ChildLost as loss:
        async with worker.database.connection() as connection:
            crashes = await count_crash(connection, image_id)
        if 0 < crashes <= _CRASHES_ALLOWED:
            raise Retry(defer=0) from loss
        image = await _fail(worker.database, image_id, "probe-failed")
    else:
        image = await worker.findings.submit((image_id, found))
    if image is not None:
        return image
    async with worker.database.connection() as connection:
        return await load_image(connection, image_id)


async def _look(worker: Resources, image_id: ImageId) -> Probe:
    path = await worker.storage.locate(image_id)
    if path is None:
        raise Rejected("image-lost")
    return await worker.children.probe(str(path))


async def _fail(database: Database, image_id: ImageId, code: str) -> Image | None:
    async with database.connection() as connection:
        return await mark_failed(connection, image_id, code)
