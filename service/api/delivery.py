"""`/i/{id}`: a stored image as pages embed it, raw or as a rendition made to the parameters."""

from __future__ import annotations

import time
from collections.abc import Sequence
from email.utils import formatdate
from urllib.parse import parse_qsl, quote

import msgspec
from aiohttp import web

from service.api.clients import client_address
from service.api.middleware import request_id
from service.api.resources import resources
from service.api.sending import send
from service.delivery import signatures
from service.delivery.delivery import Delivery
from service.delivery.negotiation import accepted
from service.delivery.parsing import Asked, parse
from service.delivery.pictures import Picture
from service.delivery.rendering import RenderOrder
from service.delivery.resolution import resolve
from service.delivery.subjects import TRUST_S, Subject
from service.delivery.transformations import Format, Transformation
from service.errors import ServiceError
from service.ids import parse_image_id
from service.images.records import Image
from service.metrics import metrics
from service.probes import MIME_TYPES
from service.storage.files import Stored

_VARIES = web.RequestKey("varies", bool)

_MOST_PARAMETERS = 64
# An SVG is a document that may have scripts; a browser that opens it runs none of them.
_SVG_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"


async def show(request: web.Request) -> web.StreamResponse:
    """GET /i/{id} and /i/{id}/{name}: the picture."""
    delivery = resources(request).delivery
    address = client_address(request, delivery.trusted_proxies)
    delivery.misses.check(address)
    taken = accepted(request.headers.get("Accept", ""))
    key = (request.raw_path, taken)
    picture = delivery.hot.get(key)
    if picture is not None:
        metrics.pictures_from_memory.inc()
    else:
        generation, looked_at = delivery.hot.generation, time.monotonic()
        subject = await _find_subject(delivery, request, address)
        expires = await _authorize(delivery, request, subject, address)
        picture = await _find_picture(delivery, request, subject, taken, address, expires)
        trusted_s = TRUST_S if expires is None else min(TRUST_S, expires - time.time())
        delivery.hot.put(key, picture, until=looked_at + trusted_s, generation=generation)
    return await send(request, picture, accel_prefix=delivery.accel_prefix)


async def _find_subject(delivery: Delivery, request: web.Request, address: str) -> Subject:
    subject = await delivery.subjects.find(parse_image_id(request.match_info["id"]))
    if subject is None or subject.image.state == "failed":
        await delivery.misses.count(address)
        raise ServiceError("image-not-found", "There is no image with this id.")
    if subject.image.state == "pending":
        raise ServiceError("image-processing", retry_after_s=1)
    return subject


async def _authorize(delivery: Delivery, request: web.Request, subject: Subject, address: str) -> int | None:
    """When the signature ends, if there is one that does. Raises `signature-required` and what `verify` does."""
    if not signatures.is_signed(request.raw_path):
        if subject.policy.require_signature:
            raise ServiceError("signature-required")
        return None
    try:
        return signatures.verify(request.raw_path, subject.policy.secrets, now=time.time())
    except ServiceError as error:
        if error.code == "signature-invalid":
            await delivery.misses.count(address)  # it may be a guess too
        raise


async def _find_picture(
    delivery: Delivery,
    request: web.Request,
    subject: Subject,
    taken: tuple[Format, ...],
    address: str,
    expires: int | None,
) -> Picture:
    name = request.match_info.get("name", "")
    asked = parse(_parameters(request), name, subject.policy.presets)
    headers = _headers(delivery, subject.image, expires)
    if name:
        headers["Content-Disposition"] = f"inline; filename*=UTF-8''{quote(name, safe='')}"
    if asked is None:
        return await _find_raw(delivery, request, subject, headers)
    if asked.format is None:
        request[_VARIES] = True
        headers["Vary"] = "Accept"
    transformation = await _resolve(delivery, request, subject, asked, taken, address)
    order = RenderOrder(subject.image.id, transformation)
    stored = await _make(delivery, request, subject, order)
    headers["Content-Type"] = MIME_TYPES[transformation.format]
    return _picture(order, stored, f"{order.digest}-{stored.modified_ns:x}", stored.modified_ns // 10**9, headers)


async def _find_raw(
    delivery: Delivery, request: web.Request, subject: Subject, headers: dict[str, str]
) -> Picture:
    image = subject.image
    order = RenderOrder(image.id)
    headers["Content-Type"] = MIME_TYPES[image.format or ""]
    headers["Cache-Control"] += ", immutable"
    if image.format == "svg":
        headers["Content-Security-Policy"] = _SVG_POLICY
    etag = image.sha256.hex()
    if subject.policy.strip_location:
        stored = await _make(delivery, request, subject, order)
        etag = f"{etag}-{stored.modified_ns:x}"
    else:
        found = await delivery.storage.find(image.id)
        if found is None:
            raise ServiceError("image-lost")
        stored = found
        metrics.pictures_from_disk.inc()
    return _picture(order, stored, etag, int(image.created_at.timestamp()), headers)


async def _resolve(
    delivery: Delivery,
    request: web.Request,
    subject: Subject,
    asked: Asked,
    taken: tuple[Format, ...],
    address: str,
) -> Transformation:
    if asked.watermark is not None:
        over = await delivery.subjects.find(asked.watermark.image_id)
        if over is None:
            await delivery.misses.count(address)
        if over is None or over.image.account_id != subject.image.account_id or over.image.state != "ready":
            raise ServiceError("invalid-parameter", "watermark must be the id of an image of the same account.")
    if subject.policy.strip_location:
        asked = msgspec.structs.replace(asked, keep_location=False)
    widths: Sequence[int] = () if signatures.is_signed(request.raw_path) else delivery.widths
    return resolve(asked, subject.image, taken=taken, widths=widths)


async def _make(delivery: Delivery, request: web.Request, subject: Subject, order: RenderOrder) -> Stored:
    """What is signed was asked for by the account itself, and a raw file is one and no more: neither is bounded."""
    bounded = order.transformation is not None and not signatures.is_signed(request.raw_path)
    return await delivery.renditions.get(
        order, subject.image.account_id, bounded=bounded, request_id=request_id(request)
    )


def _picture(order: RenderOrder, stored: Stored, etag: str, modified_s: int, headers: dict[str, str]) -> Picture:
    headers["ETag"] = f'"{etag}"'
    headers["Last-Modified"] = formatdate(modified_s, usegmt=True)
    image_ids = (order.image_id, *([order.watermark_id] if order.watermark_id else []))
    kind = "images" if stored.path.name == order.image_id else "renditions"
    accel_path = f"/{kind}/{stored.path.parent.name}/{stored.path.name}"
    return Picture(image_ids, stored, etag, modified_s, headers, accel_path)


def _headers(delivery: Delivery, image: Image, expires: int | None) -> dict[str, str]:
    """Of every answer that shows something of this image. Nothing is kept longer than its signature holds."""
    max_age_s = delivery.max_age_s if expires is None else max(0, min(delivery.max_age_s, int(expires - time.time())))
    return {
        "Cache-Control": f"public, max-age={max_age_s}",
        "Surrogate-Key": image.id,
        "Cache-Tag": image.id,
        "Accept-Ranges": "bytes",
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Resource-Policy": "cross-origin",
    }


def _parameters(request: web.Request) -> list[tuple[str, str]]:
    try:
        return parse_qsl(
            request.rel_url.raw_query_string.lstrip("?"), keep_blank_values=True, max_num_fields=_MOST_PARAMETERS
        )
    except ValueError as error:
        raise ServiceError("invalid-parameter", f"Send at most {_MOST_PARAMETERS} parameters.") from error


async def tell_what_varies(request: web.Request, response: web.StreamResponse) -> None:
    """For `on_response_prepare`: errors depend on Accept too, where the picture would have."""
    if request.get(_VARIES):
        response.headers["Vary"] = "Accept"
