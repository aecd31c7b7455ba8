"""The job of a rendition: render it in a decoder, write its file and its row, and publish the result."""

from __future__ import annotations

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
from service.storage.interface import RenditionKey, StorageUnavailable
from service.telemetry.metrics import metrics
from worker.rendition_writer import Rendition
from worker.resources import Resources
from worker.sandbox.decoder import DecoderFailed, Usage
from worker.sandbox.files import SizeMismatch
from worker.sandbox.process import DecoderUnavailable

log = structlog.get_logger("worker")

RETRY_S = 1
_MAX_TRIES = 20
# Older orders are dropped: their clients have given up, and may request them again. So a rush does not cause hours of
# useless work.
_MAX_ORDER_AGE_S = 60
# A file of at most this size is sent with the result, through Redis, so that the API need not read it from disk.
_MAX_INLINE_BYTES = 32 << 10


async def render_image(ctx: dict[str, Any], order: bytes, *, request_id: str) -> RenderResult | None:
    """Renders one order. Runs at least once for each order that is not too old, and always writes the same file for it.

    The job is retried while a dependency is unavailable.
    """
    worker: Resources = ctx["resources"]
    if ctx["job_try"] == 1:
        metrics.render_wait.observe(max(0.0, ctx["waited_s"]))
        if ctx["waited_s"] > _MAX_ORDER_AGE_S:
            metrics.count_render_failure("rendition-not-ready")
            log.info("render.expired", request_id=request_id, waited_s=round(ctx["waited_s"], 1))
            return None
    try:
        decoded = decode_order(order)
    except msgspec.MsgspecError as error:  # sent by another version of the API, which enqueues it again
        log.warning("render.undecodable", error=repr(error))
        return None
    with structlog.contextvars.bound_contextvars(request_id=request_id, image_id=decoded.image_id):
        return await _render(worker, decoded, ctx)


async def _render(worker: Resources, order: RenderOrder, ctx: dict[str, Any]) -> RenderResult:
    usage = Usage()
    rendition, code, kind = None, None, None
    try:
        rendition = await _render_and_store(worker, order, ctx.get("account", ""), usage)
    except Rejected as error:
        code, kind = error.code, error.kind
    except (ServiceError, DecoderUnavailable, OSError) as error:
        log.log(level_of(error), "render.deferred", error=repr(error))
        if ctx["job_try"] < _MAX_TRIES:
            raise Retry(defer=RETRY_S) from error
        code = "rendition-not-ready"  # the client may request it again
    if code is not None:
        metrics.count_render_failure(code)
        log.info("render.failed", code=code)
    seconds = None if order.transformation is None else usage.seconds  # the worker itself writes copies
    return RenderResult(
        order.image_id, order.digest, code, _choose_inline_file(rendition), kind, seconds, order.ordered_by
    )


async def _render_and_store(worker: Resources, order: RenderOrder, account: str, usage: Usage) -> Rendition | None:
    """Returns None if the file already exists, e.g. because two clients requested it.

    Raises Rejected if it cannot be rendered, or neither stored nor sent.
    """
    key = RenditionKey(order.image_id, order.digest)
    rendition = None
    stored = await worker.renditions.find(key, partial(is_complete, order))
    if stored is None:
        try:
            rendition = await _write(worker, order, key, account, usage)
        except DecoderFailed as error:
            raise Rejected("rendition-failed") from error
        except SizeMismatch as error:
            log.warning("render.image_damaged", error=str(error))
            raise Rejected("image-damaged") from error
        except FileNotFoundError as error:
            raise Rejected(await _find_reason(worker, order)) from error
        if not rendition.is_stored:
            return rendition
        stored = rendition.stored
    # The row is written after the file, so that either a deletion of the image finds the file, or the recorder finds
    # that the image was deleted. An existing file needs a row too: its worker may have stopped before it wrote one.
    worker.rendition_recorder.record(NewRendition(key, order.watermark_id, stored.disk_size))
    return rendition


async def _write(worker: Resources, order: RenderOrder, key: RenditionKey, account: str, usage: Usage) -> Rendition:
    paths = await worker.storage.paths_for_decoding(order.image_id, order.size or None)
    writer = worker.rendition_writer
    if order.transformation is None:
        patches = await worker.renderers.find_locations(paths, size=order.size, account=account)
        return await writer.write_patched(key, paths, patches)
    watermark = None
    if order.watermark_id:
        watermark = await worker.storage.paths_for_decoding(order.watermark_id, order.watermark_size or None)
    sizes = order.size, order.watermark_size
    data = await worker.renderers.render(
        paths, order.transformation, watermark, sizes=sizes, account=account, usage=usage
    )
    return await writer.write(key, data)


def _choose_inline_file(rendition: Rendition | None) -> InlineFile | None:
    if rendition is None or rendition.stored.data is None:
        return None
    if rendition.is_stored and rendition.stored.size > _MAX_INLINE_BYTES:
        return None
    return InlineFile(rendition.stored.data, rendition.stored.modified_ns)


async def _find_reason(worker: Resources, order: RenderOrder) -> str:
    """Returns the error code for a missing file: the image was deleted, or its file was lost."""
    image_ids = [order.image_id, *([order.watermark_id] if order.watermark_id else [])]
    if not await worker.storage.find_missing(image_ids):
        raise StorageUnavailable(errno.EAGAIN, "the storage was not mounted for a moment")
    async with worker.database.connection() as connection:
        images = await find_across_accounts(connection, image_ids)
    return "image-not-found" if None in images else "image-lost"
