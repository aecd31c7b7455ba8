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
from service.dependencies.outages import level_of
from service.errors import ServiceError
from service.images.lookups import find_any
from service.probes import Rejected
from service.storage.files import Stored, in_thread
from service.storage.renditions import RenditionKey
from service.telemetry.metrics import metrics
from worker.children.child import ChildLost, Usage
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
        usage = Usage()
        try:
            made, code, kind = await _make(worker, wanted, ctx.get("account", ""), usage), None, None
        except Rejected as refusal:
            made, code, kind = None, refusal.code, refusal.kind
        except (ServiceError, ChildUnavailable, OSError) as error:
            log.log(level_of(error), "render.put_off", error=repr(error))
            if ctx["job_try"] < _MOST_TRIES:
                raise Retry(defer=_RETRY_S) from error
            made, code, kind = None, "rendition-not-ready", None  # a client that still wants it asks again
        if code is not None:
            metrics.count_render_failure(code)
            log.info("render.failed", code=code)
        seconds = None if wanted.transformation is None else usage.seconds  # a copy is made by the worker itself
        return RenderEnd(wanted.image_id, wanted.digest, code, _small(made), kind, seconds, wanted.ordered_by)


async def _make(worker: Resources, order: RenderOrder, account: str, usage: Usage) -> Stored | None:
    """None where it was made already: who looked for the file before that may order it after.

    Raises Rejected where it cannot be made.
    """
    key = RenditionKey(order.image_id, order.digest)
    made = None
    size = await asyncio.to_thread(worker.renditions.find_disk_size, key)
    if size is None:
        try:
            made = await _write(worker, order, key, account, usage)
        except ChildLost as error:
            raise Rejected("rendition-failed") from error
        except FileNotFoundError as error:
            raise Rejected(await _find_reason(worker, order)) from error
        size = made.disk_size
    # The row comes after the file: a deletion finds it, or is found by the ledger. One that was made before needs it
    # too: its worker may have ended without.
    worker.ledger.note(Made(key, order.watermark_id, size))
    return made


async def _write(worker: Resources, order: RenderOrder, key: RenditionKey, account: str, usage: Usage) -> Stored:
    places = worker.storage.places(order.image_id)
    if order.transformation is None:
        patches = await worker.renderers.find_locations(places, account=account)
        return await in_thread(worker.storage.threads, partial(_write_patched, worker, key, places, patches))
    watermark = worker.storage.places(order.watermark_id) if order.watermark_id else None
    data = await worker.renderers.render(places, order.transformation, watermark, account=account, usage=usage)
    return await asyncio.to_thread(worker.renditions.write, key, data)


def _write_patched(
    worker: Resources, key: RenditionKey, places: Sequence[str], patches: Sequence[tuple[int, bytes]]
) -> Stored:
    for place in places[:-1]:
        with suppress(FileNotFoundError):
            return worker.renditions.write_patched(key, Path(place), patches)
    return worker.renditions.write_patched(key, Path(places[-1]), patches)


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
