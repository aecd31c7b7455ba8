"""`/v1/images`: store an image, show one."""

from __future__ import annotations

from contextlib import suppress

from aiohttp import web

from service import uploads
from service.accounts import Account, load_account
from service.api import bodies, envelope, parameters
from service.api.authentication import authenticate
from service.api.middleware import request_id
from service.api.parameters import Detail
from service.api.representations import ShownImage, describe_account, describe_image, describe_new
from service.api.resources import Resources, resources
from service.errors import ServiceError
from service.ids import parse_image_id
from service.images.lookups import find_image


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
        return envelope.ok(await _complete(describe_new(new), service, account, detail), status=202)
    shown = describe_image(image, detail, service.settings.public_url)
    return envelope.ok(await _complete(shown, service, account, detail))


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
    return envelope.ok(await _complete(shown, service, account, detail))


async def _complete(shown: ShownImage, service: Resources, account: Account, detail: Detail) -> ShownImage:
    """Add the account, as it is now, where it was asked for.

    If it cannot be read any more it is as the key's look-up found it: an image that is stored is never answered 503.
    """
    if detail.with_account:
        with suppress(ServiceError):
            async with service.database.connection() as connection:
                account = await load_account(connection, account.id)
        shown.account = describe_account(account)
    return shown
