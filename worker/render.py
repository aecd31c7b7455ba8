"""The job of a rendition: make it in a child process, keep its file and its row, tell whoever waits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import structlog
from arq import Retry

from service.delivery.orders import RenderEnd, RenderOrder, SmallFile, decode_order
from service.delivery.rows import Made
from service.errors import ServiceError
from service.images.lookups import find_any
from service.probes import Rejected
from service.storage.files import Stored, in_thread
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
# Up to this size the file itself goes along with the news of it, through Redis: it is not looked for on disk again.
_MOST_SENT_BYTES = 32 << 10


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
            made, code, kind = await _make(worker, wanted, ctx.get("account", "")), None, None
        except Rejected as refusal:
            made, code, kind = None, refusal.code, refusal.kind
        except (ServiceError, ChildUnavailable, OSError) as error:
            log.warning("render.put_off", error=repr(error))
            if ctx["job_try"] < _MOST_TRIES:
                raise Retry(defer=_RETRY_S) from error
            made, code, kind = None, "rendition-not-ready", None  # a client that still wants it asks again
        if code is not None:
            metrics.count_render_failure(code)
            log.info("render.failed", code=code)
        return RenderEnd(wanted.image_id, wanted.digest, code, _small(made), kind)


async def _make(worker: Resources, order: RenderOrder, account: str) -> Stored | None:
    """None where it was made already: who looked for the file before that may order it after.

    Raises Rejected where it cannot be made.
    """
    key = RenditionKey(order.image_id, order.digest)
    try:
        made = await _write(worker, order, key, account)
    except ChildLost as error:
        raise Rejected("rendition-failed") from error
    except FileNotFoundError as error:
        raise Rejected(await _find_reason(worker, order)) from error
    # Whoever made it before may have ended without a row of it.
    size = made.size if made is not None else await asyncio.to_thread(worker.renditions.find_size, key)
    if size is not None:
        # The row comes after the file: a deletion finds it, or is found by the ledger.
        worker.ledger.note(Made(key, order.watermark_id, size))
    return made


async def _write(worker: Resources, order: RenderOrder, key: RenditionKey, account: str) -> Stored | None:
    places, result = worker.storage.places(order.image_id), str(worker.renditions.path(key))
    if order.transformation is None:
        found = await worker.renderers.find_locations(places, result, account)
        if found is None:
            return None
        if found.path not in places:
            raise ChildUnavailable("it has read another file")
        with suppress(FileNotFoundError):
            return await _write_patched(worker, key, Path(found.path), found.patches)
        # Moved since, from where it came in to where it is kept.
        return await _write_patched(worker, key, Path(places[0]), found.patches)
    over = worker.storage.places(order.watermark_id) if order.watermark_id else ()
    data = await worker.renderers.render(places, result, order.transformation, over, account)
    return None if data is None else await asyncio.to_thread(worker.renditions.write, key, data)


async def _write_patched(
    worker: Resources, key: RenditionKey, source: Path, patches: Sequence[tuple[int, bytes]]
) -> Stored:
    return await in_thread(worker.storage.threads, partial(worker.renditions.write_patched, key, source, patches))


def _small(made: Stored | None) -> SmallFile | None:
    if made is None or made.data is None or made.size > _MOST_SENT_BYTES:
        return None
    return SmallFile(made.data, made.modified_ns)


async def _find_reason(worker: Resources, order: RenderOrder) -> str:
    """A file is missing: of an image that was deleted, unless it was lost."""
    await worker.storage.require_mounted()
    wanted = [order.image_id, *([order.watermark_id] if order.watermark_id else [])]
    async with worker.database.connection() as connection:
        images = await find_any(connection, wanted)
    return "image-not-found" if None in images else "image-lost"
