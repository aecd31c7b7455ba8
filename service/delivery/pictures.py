"""Finds the picture that a request names: the original of an image, or a rendition of it."""

from __future__ import annotations

import math
import time
from concurrent.futures import Executor
from dataclasses import dataclass
from email.utils import formatdate
from typing import NamedTuple
from urllib.parse import quote

import msgspec

from service.addresses import client_network
from service.delivery.context import DeliveryContext
from service.delivery.image_cache import ServedImage
from service.delivery.memory_cache import CachePolicy, ServedPicture
from service.errors import ServiceError
from service.ids import ImageId, parse_image_id
from service.images.models import Image
from service.media_types import MIME_TYPES
from service.renditions import signatures
from service.renditions.cost_limiter import Requester
from service.renditions.costs import estimate_copy_s, estimate_rendition_s
from service.renditions.jobs import RenderOrder
from service.renditions.normalize import normalize
from service.renditions.parsing import parse, split_query
from service.renditions.transformation import Format, RenditionParams
from service.storage.files import SMALL_BYTES, starts_with, storage_errors
from service.storage.interface import StoredFile
from service.telemetry.metrics import metrics

# Longer paths would fill the memory cache with keys.
_MAX_CACHED_PATH_CHARACTERS = 512
_PICTURE_HEADERS = {
    "Accept-Ranges": "bytes",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "cross-origin",
}
# Caches may keep a redirect for half of this time.
_REDIRECT_VALID_S = 600
_GZIP_MAGIC = b"\x1f\x8b"
# An SVG is a document that may hold scripts; this keeps a browser that opens it from running them.
_SVG_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"


@dataclass(slots=True)
class PictureRequest:
    """One request for a picture. `id_text` is the id in the path, not yet checked. `raw_path` (with the query) and
    `raw_query` are as received, because signatures are. `accepted` are the negotiated formats that the client accepts.
    `may_be_redirected` is False for HEAD, since a signed URL is for GET.

    Finding the picture sets the last two fields: `valid_until` is the monotonic time until which everything that was
    looked up is valid, and `varies_by_accept` says whether the response, also an error, depends on Accept.
    """

    context: DeliveryContext
    id_text: str
    name: str
    raw_path: str
    raw_query: str
    accepted: tuple[Format, ...]
    is_signed: bool
    address: str
    request_id: str
    may_be_redirected: bool = False
    valid_until: float = math.inf
    varies_by_accept: bool = False


class Redirect(NamedTuple):
    """The picture is at this URL of the object store."""

    url: str
    caching: CachePolicy


async def find_picture(request: PictureRequest) -> ServedPicture | Redirect:
    """Returns the picture, and adds it to the memory cache; or where the client gets it.

    Raises the errors of the parameters, the signature, the state of the image and a new rendition.
    """
    cache = request.context.memory_cache
    generation = cache.generation
    served = await _find_image(request)
    expires = await _authorize(request, served)
    picture = await _build_picture(request, served, CachePolicy(request.context.max_age_s, expires))
    if expires is not None:
        request.valid_until = min(request.valid_until, time.monotonic() + expires - time.time())
    if isinstance(picture, Redirect):
        return picture
    if len(request.raw_path) <= _MAX_CACHED_PATH_CHARACTERS:
        cache.put((request.raw_path, request.accepted), picture, until=request.valid_until, generation=generation)
    return picture


async def _find_image(request: PictureRequest) -> ServedImage:
    served = await _look_up(request, parse_image_id(request.id_text))
    if served is None:
        raise ServiceError("image-not-found", "There is no image with this id.")
    if not served.policy.is_delivered:
        raise ServiceError("account-suspended", "The images of this account are not available at present.")
    if served.image.state == "pending":
        raise ServiceError("image-processing", retry_after_s=1)
    return served


async def _look_up(request: PictureRequest, image_id: ImageId) -> ServedImage | None:
    """Returns None if there is no such image, and counts that for the address. Raises `too-many-misses`."""
    served = await request.context.image_cache.find(image_id)
    if served is None or served.image.state == "failed":
        await request.context.not_found_limiter.count(request.address)
        return None
    request.valid_until = min(request.valid_until, served.valid_until)
    return served


async def _authorize(request: PictureRequest, served: ServedImage) -> int | None:
    """Returns the Unix time at which the signature expires, or None. Raises `signature-required` and what
    `signatures.verify` does.
    """
    if not request.is_signed:
        if served.policy.require_signature:
            raise ServiceError("signature-required")
        return None
    try:
        return signatures.verify(request.raw_path, served.policy.secrets, now=time.time())
    except ServiceError as error:
        if error.code == "signature-invalid":
            await request.context.not_found_limiter.count(request.address)  # it may be a guess too
        raise


async def _build_picture(
    request: PictureRequest, served: ServedImage, caching: CachePolicy
) -> ServedPicture | Redirect:
    params = parse(split_query(request.raw_query), request.name, served.policy.presets)
    headers = dict(_PICTURE_HEADERS)
    if request.name:
        headers["Content-Disposition"] = f"inline; filename*=UTF-8''{quote(request.name, safe='')}"
    if params is not None:
        return await _find_rendition(request, served, params, headers, caching)
    headers["Content-Type"] = MIME_TYPES[served.image.format or ""]
    if served.image.format == "svg":
        headers["Content-Security-Policy"] = _SVG_POLICY
    if served.policy.strip_location:
        return await _find_copy_without_location(request, served, headers, caching._replace(immutable=True))
    if (redirect := await _find_redirect(request, served.image, caching)) is not None:
        return redirect
    return await _find_original(request, served, headers, caching._replace(immutable=True))


async def _find_redirect(request: PictureRequest, image: Image, caching: CachePolicy) -> Redirect | None:
    """Returns where the client gets a large original, if it may get that from the object store.

    An SVG needs headers that keep its scripts from running, and the store does not send them.
    """
    context = request.context
    if not (context.redirects and request.may_be_redirected) or image.size <= SMALL_BYTES or image.format == "svg":
        return None
    valid_s = _REDIRECT_VALID_S  # but no longer than the signature of the request
    if caching.expires is not None:
        valid_s = max(1, min(valid_s, caching.expires - int(time.time())))
    with storage_errors():
        url = await context.storage.sign(image.id, valid_s)
    if url is None:
        return None
    return Redirect(url, caching._replace(max_age_s=min(caching.max_age_s, valid_s // 2)))


async def _find_rendition(
    request: PictureRequest,
    served: ServedImage,
    params: RenditionParams,
    headers: dict[str, str],
    caching: CachePolicy,
) -> ServedPicture:
    context, image = request.context, served.image
    if params.format is None:
        headers["Vary"] = "Accept"
        request.varies_by_accept = True
    watermark = await _find_watermark(request, served, params)
    if served.policy.strip_location:
        params = msgspec.structs.replace(params, keep_location=False)
    widths = () if request.is_signed else context.widths
    transformation, plan, frames = normalize(params, image, accepted=request.accepted, widths=widths)
    seconds = estimate_rendition_s(image, transformation, plan, frames=frames, watermark=watermark)
    watermark_size = 0 if watermark is None else watermark.size
    order = RenderOrder.rendition(image.id, transformation, size=image.size, watermark_size=watermark_size)
    stored = await _get_file(request, served, order, seconds)
    headers["Content-Type"] = MIME_TYPES[transformation.format]
    return _describe_rendition(request, order, stored, headers, caching)


async def _find_watermark(request: PictureRequest, served: ServedImage, params: RenditionParams) -> Image | None:
    if params.watermark is None:
        return None
    watermark = await _look_up(request, params.watermark.image_id)
    if watermark is None or watermark.image.account_id != served.image.account_id or watermark.image.state != "ready":
        raise ServiceError("invalid-parameter", "watermark must be the id of an image of the same account.")
    return watermark.image


async def _find_copy_without_location(
    request: PictureRequest, served: ServedImage, headers: dict[str, str], caching: CachePolicy
) -> ServedPicture:
    image = served.image
    order = RenderOrder(image.id, size=image.size)
    stored = await _get_file(request, served, order, estimate_copy_s(image))
    headers |= await _content_encoding(image, stored, request.context.files.threads)
    return _describe_rendition(request, order, stored, headers, caching)


async def _find_original(
    request: PictureRequest, served: ServedImage, headers: dict[str, str], caching: CachePolicy
) -> ServedPicture:
    """Raises `image-lost` and `image-damaged`."""
    image, context = served.image, request.context
    stored = await context.storage.find(image.id, image.size)
    if stored is None:
        context.image_cache.invalidate([image.id])
        is_deleted = await context.image_cache.find(image.id) is None
        raise ServiceError("image-not-found" if is_deleted else "image-lost")
    if stored.size != image.size:
        raise ServiceError("image-damaged") from ValueError(f"the file has {stored.size} bytes instead of {image.size}")
    metrics.pictures_from_disk.inc()
    threads = context.storage.threads
    headers |= await _content_encoding(image, stored, threads)
    return _describe(
        (image.id,),
        stored,
        image.sha256.hex(),
        int(image.created_at.timestamp()),
        headers,
        caching=caching,
        accel_folder="images",
        threads=threads,
    )


async def _get_file(request: PictureRequest, served: ServedImage, order: RenderOrder, seconds: float) -> StoredFile:
    """Returns the file of an order as soon as it exists. A signed URL is the account's own, so no address is
    charged.
    """
    address = None if request.is_signed else client_network(request.address)
    return await request.context.renditions.get(
        order, Requester(served.image.account_id, address), seconds=seconds, request_id=request.request_id
    )


async def _content_encoding(image: Image, stored: StoredFile, threads: Executor) -> dict[str, str]:
    """Returns the header that browsers need to show an SVG that is stored compressed (svgz)."""
    is_compressed = image.format == "svg" and await starts_with(threads, stored, _GZIP_MAGIC)
    return {"Content-Encoding": "gzip"} if is_compressed else {}


def _describe_rendition(
    request: PictureRequest, order: RenderOrder, stored: StoredFile, headers: dict[str, str], caching: CachePolicy
) -> ServedPicture:
    """ETag and Last-Modified come from the rendition, not from its original, because a rendition may be rendered
    again.
    """
    return _describe(
        (order.image_id,) if order.watermark_id is None else (order.image_id, order.watermark_id),
        stored,
        f"{order.digest}-{stored.modified_ns:x}",
        stored.modified_ns // 10**9,
        headers,
        caching=caching,
        accel_folder="renditions",
        threads=request.context.files.threads,
    )


def _describe(
    image_ids: tuple[ImageId, ...],
    stored: StoredFile,
    etag: str,
    modified_s: int,
    headers: dict[str, str],
    *,
    caching: CachePolicy,
    accel_folder: str,
    threads: Executor,
) -> ServedPicture:
    """Fastly and Varnish purge by `Surrogate-Key`, Cloudflare by `Cache-Tag`: the ids of all images in the picture."""
    headers["ETag"] = f'"{etag}"'
    headers["Last-Modified"] = formatdate(modified_s, usegmt=True)
    headers["Surrogate-Key"] = " ".join(image_ids)
    headers["Cache-Tag"] = ",".join(image_ids)
    accel_path = f"/{accel_folder}/{stored.path.parent.name}/{stored.path.name}"
    return ServedPicture(image_ids, stored, etag, modified_s, headers, caching, accel_path, threads)
