"""`/i/{id}`: the picture of an image, as it was uploaded or as a rendition."""

from __future__ import annotations

import time
from contextlib import suppress

from aiohttp import web

from service.api.middleware import ERROR_HEADERS, request_id
from service.api.resources import RESOURCES
from service.delivery.context import DeliveryContext
from service.delivery.memory_cache import ServedPicture
from service.delivery.pictures import PictureRequest, Redirect, find_picture
from service.errors import ServiceError
from service.http.client_addresses import client_address
from service.http.file_sending import FileChanged, file_response
from service.renditions.formats import accepted_formats
from service.renditions.signatures import is_signed
from service.storage.files import SMALL_BYTES
from service.telemetry.metrics import metrics

# A file may change after it was found and before it is sent.
_MAX_ATTEMPTS = 3


async def show(request: web.Request) -> web.StreamResponse:
    """GET /i/{id} and /i/{id}/{name}: the picture."""
    service = request.app[RESOURCES]
    context = service.delivery
    service.proxy_warnings.check(request)
    address = client_address(request, context.trusted_proxies)
    context.not_found_limiter.check(address)
    accepted = accepted_formats(request.headers.get("Accept", ""))
    picture = context.memory_cache.get((request.raw_path, accepted))
    if picture is not None:
        metrics.pictures_from_memory.inc()
        return await file_response(request, picture)
    picture_request = PictureRequest(
        context=context,
        id_text=request.match_info["id"],
        name=request.match_info.get("name", ""),
        raw_path=request.raw_path,
        raw_query=request.rel_url.raw_query_string,
        accepted=accepted,
        is_signed=is_signed(request.raw_path),
        address=address,
        request_id=request_id(request),
        may_be_redirected=request.method == "GET",
    )
    return await _find_and_send(request, picture_request)


def find_cached(context: DeliveryContext, request: web.BaseRequest) -> ServedPicture | None:
    """Returns the picture for the fast path, if it is in memory and its headers do not depend on the time."""
    picture = context.memory_cache.get((request.raw_path, accepted_formats(request.headers.get("Accept", ""))))
    if picture is None or picture.caching.expires is not None:
        return None
    try:
        context.not_found_limiter.check(client_address(request, context.trusted_proxies))
    except ServiceError:
        return None
    return picture


async def _find_and_send(request: web.Request, picture_request: PictureRequest) -> web.StreamResponse:
    context = picture_request.context
    for _ in range(_MAX_ATTEMPTS):
        try:
            picture = await find_picture(picture_request)
        finally:
            if picture_request.varies_by_accept:
                request[ERROR_HEADERS] = {"Vary": "Accept"}
        if isinstance(picture, Redirect):
            headers = {"Location": picture.url, "Cache-Control": picture.caching.header(time.time())}
            return web.Response(status=302, headers=headers)
        with suppress(FileChanged):
            response = await file_response(request, picture, accel_prefix=context.accel_prefix)
            if picture.stored.data is not None and picture.stored.size > SMALL_BYTES:
                context.memory_budget.hold(response, picture.stored.size)
                response.force_close()  # a connection that stays open would hold its last response
            return response
    raise ServiceError("storage-unavailable")
