"""The job of a rendition: make it in a child process, keep its file and its row, tell whoever waits."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import structlog
from arq import Retry

from service.delivery.orders import RenderEnd, RenderOrder, decode_order
from service.delivery.rows import Made
from service.errors import ServiceError
from service.images.lookups import find_any
from service.probes import Rejected
from service.storage.renditions import RenditionKey
from service.telemetry.metrics import metrics
from worker.children.child import ChildLost
from worker.children.process import ChildUnavailable
from worker.resources import Resources

log = structlog.get_logger("worker")

_RETRY_S = 1
_MOST_TRIES = 20
# Whoever asked for it has gone, and asks again if it is still wanted: so a rush leaves behind no hours of work.
_STALE_S = 60


async def render_image(ctx: dict[str, Any], order: bytes, *, request_id: str) -> RenderEnd | None:
    """Runs at least once for each order that is not stale; the same order makes the same file. A dependency that is
    away puts it off.
    """
    worker: Resources = ctx["resources"]
    if ctx["job_try"] == 1:
        metrics.render_wait.observe(max(0.0, ctx["waited_s"]))
        if ctx["waited_s"] > _STALE_S:
            metrics.count_render_failure("rendition-not-ready")
            log.info("render.stale", request_id=request_id, waited_s=round(ctx["waited_s"], 1))
            return None
    try:
        wanted = decode_order(order)
    except msgspec.MsgspecError as error:  # of another version's API: it asks again
        log.warning("render.undecodable", error=repr(error))
        return None
    with structlog.contextvars.bound_contextvars(request_id=request_id, image_id=wanted.image_id):
        try:
            code = await _make(worker, wanted)
        except (ServiceError, ChildUnavailable, OSError) as error:
            log.warning("render.put_off", error=repr(error))
            if ctx["job_try"] < _MOST_TRIES:
                raise Retry(defer=_RETRY_S) from error
            code = "rendition-not-ready"  # whoever still wants it asks again
        if code is not None:
            metrics.count_render_failure(code)
            log.info("render.failed", code=code)
        return RenderEnd(wanted.image_id, wanted.digest, code)


async def _make(worker: Resources, order: RenderOrder) -> str | None:
    """Why it cannot be made, an error code of the API; None once it is there."""
    key = RenditionKey(order.image_id, order.digest)
    try:
        # Who looked for the file before it was made may order it when that is done.
        size = await asyncio.to_thread(worker.renditions.find_size, key)
        if size is None:
            size = await _write(worker, order, key)
    except Rejected as refusal:
        return refusal.code
    except ChildLost:
        return "rendition-failed"
    except FileNotFoundError:
        return await _find_reason(worker, order)
    # The row comes after the file: a deletion finds it, or is found by the ledger.
    worker.ledger.note(Made(key, order.watermark_id, size))
    return None


async def _write(worker: Resources, order: RenderOrder, key: RenditionKey) -> int:
    places = worker.storage.places(order.image_id)
    if order.transformation is None:
        found = await worker.renderers.find_locations(places)
        if found.path not in places:
            raise ChildUnavailable("it has read another file")
        with suppress(FileNotFoundError):
            return await asyncio.to_thread(worker.renditions.write_patched, key, Path(found.path), found.patches)
        # Moved since, from where it came in to where it is kept.
        return await asyncio.to_thread(worker.renditions.write_patched, key, Path(places[0]), found.patches)
    over = worker.storage.places(order.watermark_id) if order.watermark_id else ()
    data = await worker.renderers.render(places, order.transformation, over)
    return await asyncio.to_thread(worker.renditions.write, key, data)


async def _find_reason(worker: Resources, order: RenderOrder) -> str:
    """A file is missing: of an image that was deleted, unless it was lost."""
    await worker.storage.require_mounted()
    wanted = [order.image_id, *([order.watermark_id] if order.watermark_id else [])]
    async with worker.database.connection() as connection:
        images = await find_any(connection, wanted)
    return "image-not-found" if None in images else "image-lost"
