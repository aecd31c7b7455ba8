"""`/v1/images`: store an image, show one, delete some."""

from __future__ import annotations

from contextlib import suppress

from aiohttp import web

from service import uploads
from service.api import answers, bodies, envelope, parameters
from service.api.authentication import authenticate
from service.api.middleware import request_id
from service.api.representations import describe_image, describe_new
from service.api.resources import resources
from service.errors import ServiceError
from service.ids import parse_image_id, parse_image_ids
from service.images.deletions import delete_images
from service.images.lookups import find_image
from service.removals import remove_files


async def create(request: web.Request) -> web.Response:
    """POST /v1/images: the body becomes an image."""
    service = resources(request)
    account = await authenticate(request)
    detail, tags = parameters.detail(request), parameters.tags(request)
    bodies.check_content_type(request)
    await service.admission.check_length(account, bodies.declared_length(request))
    with service.admission.upload():
        upload = await uploads.receive(bodies.chunks(request), service.storage, service.upload_limits)
        new, image = await service.ingest.store(upload, account.id, tags, request_id=request_id(request))
    if image is None:
        return envelope.ok(await answers.complete(describe_new(new), service, account, detail), status=202)
    shown = describe_image(image, detail, service.settings.public_url)
    return envelope.ok(await answers.complete(shown, service, account, detail))


async def show(request: web.Request) -> web.Response:
    """GET /v1/images/{id}: the metadata of one image."""
    service = resources(request)
    account = await authenticate(request)
    detail = parameters.detail(request)
    image_id = parse_image_id(request.match_info["id"])
    async with service.database.connection() as connection:
        image = await find_image(
            connection,
            image_id,
            account.id,
            with_exif=detail.with_exif,
            with_mini_preview=detail.with_mini_preview,
        )
    if image is None:
        raise ServiceError("image-not-found")
    shown = describe_image(image, detail, service.settings.public_url)
    return envelope.ok(await answers.complete(shown, service, account, detail))


async def delete(request: web.Request) -> web.Response:
    """GET /v1/images/{id}/delete and DELETE /v1/images/{id}: all of the images, or none."""
    service = resources(request)
    account = await authenticate(request)
    detail = parameters.detail(request)
    named = request.match_info["id"]
    image_ids = parse_image_ids(named)
    async with service.database.connection() as connection:
        images = await delete_images(
            connection,
            image_ids,
            account.id,
            with_exif=detail.with_exif,
            with_mini_preview=detail.with_mini_preview,
        )
    with suppress(ServiceError):  # they are deleted: a file that is left is the sweep's
        await remove_files(service.database, service.storage, image_ids)
    return await answers.changed(images, service, account, detail, as_list="," in named)
