"""The job of a rendition: make it in a child process, keep its file and its row, and send the event of its end."""

from __future__ import annotations

import asyncio
import errno
from functools import partial
from typing import Any

import msgspec
import structlog
from arq import Retry

from service.dependencies.outages import level_of
from service.errors import ServiceError
from service.images.probe import Rejected
from service.images.queries import find_across_accounts
from service.renditions.integrity import is_complete
from service.renditions.jobs import InlineFile, RenderOrder, RenderResult, decode_order
from service.renditions.queries import NewRendition
from service.storage.files import in_thread
from service.storage.interface import RenditionKey, StorageUnavailable
from service.telemetry.metrics import metrics
from worker.keeping import Rendition
from worker.resources import Resources
from worker.sandbox.decoder import ChildLost, Usage
from worker.sandbox.files import OtherSize
from worker.sandbox.process import ChildUnavailable

log = structlog.get_logger("worker")

_RETRY_S = 1
_MAX_TRIES = 20
# Its client has gone, and asks again if the rendition is still wanted: so a rush leaves behind no hours of work.
_STALE_S = 60
# Up to this size the file itself goes along with the event, through Redis: it is not looked for on disk again.
_MAX_SENT_BYTES = 32 << 10


async def render_image(ctx: dict[str, Any], order: bytes, *, request_id: str) -> RenderResult | None:
    """Makes a rendition; the same order makes the same file.

    Runs at least once for each order that is not stale. It is retried while a dependency is away.
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
        return await _render(worker, wanted, ctx)


async def _render(worker: Resources, order: RenderOrder, ctx: dict[str, Any]) -> RenderResult:
    usage = Usage()
    rendition, code, kind = None, None, None
    try:
        rendition = await _make(worker, order, ctx.get("account", ""), usage)
    except Rejected as refusal:
        code, kind = refusal.code, refusal.kind
    except (ServiceError, ChildUnavailable, OSError) as error:
        log.log(level_of(error), "render.put_off", error=repr(error))
        if ctx["job_try"] < _MAX_TRIES:
            raise Retry(defer=_RETRY_S) from error
        code = "rendition-not-ready"  # a client that still wants it asks again
    if code is not None:
        metrics.count_render_failure(code)
        log.info("render.failed", code=code)
    seconds = None if order.transformation is None else usage.seconds  # a copy is made by the worker itself
    return RenderResult(order.image_id, order.digest, code, _choose_sent(rendition), kind, seconds, order.ordered_by)


async def _make(worker: Resources, order: RenderOrder, account: str, usage: Usage) -> Rendition | None:
    """Returns None if it was made already: a client that looked for the file before that may order it after.

    Raises Rejected if it cannot be made, or neither kept nor sent.
    """
    key = RenditionKey(order.image_id, order.digest)
    rendition = None
    size = await asyncio.to_thread(worker.renditions.find_disk_size, key, partial(is_complete, order))
    if size is None:
        try:
            rendition = await _write(worker, order, key, account, usage)
        except ChildLost as error:
            raise Rejected("rendition-failed") from error
        except OtherSize as error:
            log.warning("render.image_damaged", error=str(error))
            raise Rejected("image-damaged") from error
        except FileNotFoundError as error:
            raise Rejected(await _find_reason(worker, order)) from error
        if not rendition.is_kept:
            return rendition
        size = rendition.stored.disk_size
    # The row comes after the file: a deletion finds it, or is found by the ledger. One that was made before needs it
    # too: its worker may have ended without.
    worker.ledger.note(NewRendition(key, order.watermark_id, size))
    return rendition


async def _write(worker: Resources, order: RenderOrder, key: RenditionKey, account: str, usage: Usage) -> Rendition:
    places = worker.storage.paths_for_decoding(order.image_id)
    keep = worker.keeper
    if order.transformation is None:
        patches = await worker.renderers.find_locations(places, size=order.size, account=account)
        return await in_thread(worker.storage.threads, partial(keep.keep_patched, key, places, patches))
    watermark = worker.storage.paths_for_decoding(order.watermark_id) if order.watermark_id else None
    sizes = order.size, order.watermark_size
    data = await worker.renderers.render(
        places, order.transformation, watermark, sizes=sizes, account=account, usage=usage
    )
    return await asyncio.to_thread(keep.keep, key, data)


def _choose_sent(rendition: Rendition | None) -> InlineFile | None:
    if rendition is None or rendition.stored.data is None:
        return None
    if rendition.is_kept and rendition.stored.size > _MAX_SENT_BYTES:
        return None
    return InlineFile(rendition.stored.data, rendition.stored.modified_ns)


async def _find_reason(worker: Resources, order: RenderOrder) -> str:
    """Why a file is missing: the image was deleted, or else it was lost."""
    wanted = [order.image_id, *([order.watermark_id] if order.watermark_id else [])]
    if not await worker.storage.find_missing(wanted):
        raise StorageUnavailable(errno.EAGAIN, "the storage was away, and has come back")
    async with worker.database.connection() as connection:
        images = await find_across_accounts(connection, wanted)
    return "image-not-found" if None in images else "image-lost"
