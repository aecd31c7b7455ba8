"""`/i/{id}`: a stored image as pages embed it, raw or as a rendition made to the parameters."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate
from urllib.parse import parse_qsl, quote

import msgspec
from aiohttp import web

from service.addresses import client_network
from service.api.middleware import ERROR_HEADERS, request_id
from service.api.resources import resources
from service.delivery.context import Delivery
from service.delivery.image_cache import Subject
from service.delivery.memory_cache import Caching, Picture
from service.errors import ServiceError
from service.http.client_addresses import client_address
from service.http.file_sending import FileChanged, send
from service.ids import ImageId, parse_image_id
from service.images.probe import MIME_TYPES
from service.renditions import signatures
from service.renditions.charges import Payer
from service.renditions.jobs import RenderOrder
from service.renditions.negotiation import accepted
from service.renditions.normalize import resolve
from service.renditions.parameters import Asked, parse
from service.renditions.prices import estimate_copy_s, estimate_rendition_s
from service.renditions.transformation import Format
from service.storage.files import SMALL_BYTES, starts_with
from service.storage.interface import StoredFile
from service.telemetry.metrics import metrics

# For a file that changes between being found and being sent.
_MOST_LOOKS = 3
_MOST_PARAMETERS = 64
# Longer ones would fill the memory with names.
_LONGEST_HOT_PATH = 512
_EVERY_PICTURE = {
    "Accept-Ranges": "bytes",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "cross-origin",
}
_GZIP_MAGIC = b"\x1f\x8b"
# An SVG is a document that may have scripts; a browser that opens it runs none of them.
_SVG_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"


@dataclass(slots=True)
class Visit:
    """One request for a picture. `taken` are the modern formats that its client takes, the best first. `trusted_until`,
    of the monotonic clock, is how long all that was looked up for it holds.
    """

    request: web.Request
    delivery: Delivery
    address: str
    taken: tuple[Format, ...]
    is_signed: bool
    trusted_until: float = math.inf


async def show(request: web.Request) -> web.StreamResponse:
    """GET /i/{id} and /i/{id}/{name}: the picture."""
    service = resources(request)
    delivery = service.delivery
    service.proxies.look_at(request)
    address = client_address(request, delivery.trusted_proxies)
    delivery.misses.check(address)
    taken = accepted(request.headers.get("Accept", ""))
    key = (request.raw_path, taken)
    picture = delivery.hot.get(key)
    if picture is not None:
        metrics.pictures_from_memory.inc()
        return await send(request, picture)
    visit = Visit(request, delivery, address, taken, signatures.is_signed(request.raw_path))
    for _ in range(_MOST_LOOKS):
        picture = await _find(visit, key)
        with suppress(FileChanged):
            answer = await send(request, picture, accel_prefix=delivery.accel_prefix)
            if picture.stored.data is not None and picture.stored.size > SMALL_BYTES:
                delivery.unkept.hold(answer, picture.stored.size)
                answer.force_close()  # a connection that stays open holds its last answer
            return answer
    raise ServiceError("storage-unavailable")


async def _find(visit: Visit, key: Hashable) -> Picture:
    """The picture, remembered under this key."""
    hot, path = visit.delivery.hot, visit.request.raw_path
    generation = hot.generation
    subject = await _find_subject(visit)
    expires = await _authorize(visit, subject)
    picture = await _find_picture(visit, subject, expires)
    if expires is not None:
        visit.trusted_until = min(visit.trusted_until, time.monotonic() + expires - time.time())
    if len(path) <= _LONGEST_HOT_PATH:
        hot.put(key, picture, until=visit.trusted_until, generation=generation)
    return picture


async def _find_subject(visit: Visit) -> Subject:
    subject = await _look_up(visit, parse_image_id(visit.request.match_info["id"]))
    if subject is None:
        raise ServiceError("image-not-found", "There is no image with this id.")
    if not subject.policy.is_delivered:
        raise ServiceError("account-suspended", "The pictures of this account are not shown at present.")
    if subject.image.state == "pending":
        raise ServiceError("image-processing", retry_after_s=1)
    return subject


async def _look_up(visit: Visit, image_id: ImageId) -> Subject | None:
    """None, and a miss, where there is no such image."""
    subject = await visit.delivery.subjects.find(image_id)
    if subject is None or subject.image.state == "failed":
        await visit.delivery.misses.count(visit.address)
        return None
    visit.trusted_until = min(visit.trusted_until, subject.trusted_until)
    return subject


async def _authorize(visit: Visit, subject: Subject) -> int | None:
    """When the signature ends, if there is one that does. Raises `signature-required` and what `verify` does."""
    if not visit.is_signed:
        if subject.policy.require_signature:
            raise ServiceError("signature-required")
        return None
    try:
        return signatures.verify(visit.request.raw_path, subject.policy.secrets, now=time.time())
    except ServiceError as error:
        if error.code == "signature-invalid":
            await visit.delivery.misses.count(visit.address)  # it may be a guess too
        raise


async def _find_picture(visit: Visit, subject: Subject, expires: int | None) -> Picture:
    name = visit.request.match_info.get("name", "")
    asked = parse(_parameters(visit.request), name, subject.policy.presets)
    headers, caching = dict(_EVERY_PICTURE), Caching(visit.delivery.max_age_s, expires)
    if name:
        headers["Content-Disposition"] = f"inline; filename*=UTF-8''{quote(name, safe='')}"
    if asked is None:
        return await _find_raw(visit, subject, headers, caching._replace(immutable=True))
    if asked.format is None:
        headers["Vary"] = "Accept"
        visit.request[ERROR_HEADERS] = {"Vary": "Accept"}  # whether there is an error depends on it, too
    order, seconds = await _resolve(visit, subject, asked)
    stored = await visit.delivery.renditions.get(
        order, _payer(visit, subject), seconds=seconds, request_id=request_id(visit.request)
    )
    assert order.transformation is not None  # noqa: S101 - what _resolve made
    headers["Content-Type"] = MIME_TYPES[order.transformation.format]
    return _rendered(visit, order, stored, headers, caching)


def _rendered(
    visit: Visit, order: RenderOrder, stored: StoredFile, headers: dict[str, str], caching: Caching
) -> Picture:
    """Neither ETag nor Last-Modified of what was made of an image comes from its original."""
    etag, threads = f"{order.digest}-{stored.modified_ns:x}", visit.delivery.files.threads
    return _picture(order, stored, etag, stored.modified_ns // 10**9, headers, caching=caching, threads=threads)


async def _find_raw(visit: Visit, subject: Subject, headers: dict[str, str], caching: Caching) -> Picture:
    image, order = subject.image, RenderOrder(subject.image.id, size=subject.image.size)
    headers["Content-Type"] = MIME_TYPES[image.format or ""]
    if image.format == "svg":
        headers["Content-Security-Policy"] = _SVG_POLICY
    if subject.policy.strip_location:
        stored = await visit.delivery.renditions.get(
            order, _payer(visit, subject), seconds=estimate_copy_s(image), request_id=request_id(visit.request)
        )
        headers |= await _content_encoding(image.format, stored, visit.delivery.files.threads)
        return _rendered(visit, order, stored, headers, caching)
    found = await visit.delivery.storage.find(image.id)
    if found is None:
        visit.delivery.subjects.forget([image.id])
        is_deleted = await visit.delivery.subjects.find(image.id) is None
        raise ServiceError("image-not-found" if is_deleted else "image-lost")
    if found.size != image.size:
        raise ServiceError("image-damaged") from ValueError(f"its file has {found.size} bytes instead of {image.size}")
    metrics.pictures_from_disk.inc()
    threads = visit.delivery.storage.threads
    headers |= await _content_encoding(image.format, found, threads)
    etag, created_s = image.sha256.hex(), int(image.created_at.timestamp())
    return _picture(order, found, etag, created_s, headers, caching=caching, threads=threads)


async def _content_encoding(form: str | None, stored: StoredFile, threads: Executor) -> dict[str, str]:
    """The header of an SVG that is stored compressed (svgz), which browsers show only with this header."""
    is_packed = form == "svg" and await starts_with(threads, stored, _GZIP_MAGIC)
    return {"Content-Encoding": "gzip"} if is_packed else {}


def _payer(visit: Visit, subject: Subject) -> Payer:
    """What is signed was asked for by the account itself."""
    return Payer(subject.image.account_id, None if visit.is_signed else client_network(visit.address))


async def _resolve(visit: Visit, subject: Subject, asked: Asked) -> tuple[RenderOrder, float]:
    """With the seconds that it will take."""
    delivery, mark = visit.delivery, None
    if asked.watermark is not None:
        over = await _look_up(visit, asked.watermark.image_id)
        if over is None or over.image.account_id != subject.image.account_id or over.image.state != "ready":
            raise ServiceError("invalid-parameter", "watermark must be the id of an image of the same account.")
        mark = over.image
    if subject.policy.strip_location:
        asked = msgspec.structs.replace(asked, keep_location=False)
    widths = () if visit.is_signed else delivery.widths
    transformation, plan, frames = resolve(asked, subject.image, taken=visit.taken, widths=widths)
    seconds = estimate_rendition_s(subject.image, transformation, plan, frames=frames, watermark=mark)
    mark_size = 0 if mark is None else mark.size
    order = RenderOrder.rendition(subject.image.id, transformation, size=subject.image.size, watermark_size=mark_size)
    return order, seconds


def _picture(
    order: RenderOrder,
    stored: StoredFile,
    etag: str,
    modified_s: int,
    headers: dict[str, str],
    *,
    caching: Caching,
    threads: Executor,
) -> Picture:
    """Fastly and Varnish purge by `Surrogate-Key`, Cloudflare by `Cache-Tag`: all of the images that can be seen."""
    headers["ETag"] = f'"{etag}"'
    headers["Last-Modified"] = formatdate(modified_s, usegmt=True)
    image_ids = (order.image_id, *([order.watermark_id] if order.watermark_id else []))
    headers["Surrogate-Key"] = " ".join(image_ids)
    headers["Cache-Tag"] = ",".join(image_ids)
    kind = "images" if stored.path.name == order.image_id else "renditions"
    accel_path = f"/{kind}/{stored.path.parent.name}/{stored.path.name}"
    return Picture(image_ids, stored, etag, modified_s, headers, caching, accel_path, threads)


def _parameters(request: web.Request) -> list[tuple[str, str]]:
    try:
        return parse_qsl(
            request.rel_url.raw_query_string.lstrip("?"), keep_blank_values=True, max_num_fields=_MOST_PARAMETERS
        )
    except ValueError as error:
        raise ServiceError("invalid-parameter", f"Send at most {_MOST_PARAMETERS} parameters.") from error
