"""`/v1/images`: creates, shows and deletes images."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from aiohttp import web
from yarl import URL

from service.accounts.accounts import Account
from service.api import parameters
from service.api.middleware import authenticate, request_id
from service.api.resources import RESOURCES, Resources
from service.api.responses import add_account, changed_response, created_response, describe_image, success_response
from service.downloads.client import parse_url
from service.errors import ServiceError
from service.http import bodies
from service.ids import parse_image_id, parse_image_ids
from service.images.models import IdempotencyKey, Image, NewImage
from service.images.queries import ImageQuery
from service.images.tag_rules import clean_tags
from service.images.updates import delete_images
from service.uploads import receiving


async def create(request: web.Request) -> web.Response:
    """POST /v1/images: stores the body, or the file behind the URL in a JSON body, as an image."""
    service = request.app[RESOURCES]
    account = await authenticate(request, service)
    if request.content_type == "application/json":
        return await _create_from_json(request, service, account)
    params, key = parameters.UploadParameters(request), parameters.idempotency_key(request)
    bodies.check_file_headers(request)
    with await service.admission.upload(account, bodies.declared_length(request), key) as body:
        with body.slot:
            chunks = bodies.read_file(request, params.add_field)
            upload = await receiving.receive(chunks, service.storage, service.upload_limits, body)
        new, image = await service.ingest.store(upload, account.id, params.tags, key, request_id=request_id(request))
    return await created_response(new, image, service, account, params.detail)


async def create_from_url(request: web.Request) -> web.Response:
    """GET /v1/images?url=: stores the file behind the URL as an image."""
    service = request.app[RESOURCES]
    account = await authenticate(request, service)
    return await _create_from_source(request, service, account, parameters.url(request), parameters.tags(request))


class UrlBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON body of POST /v1/images."""

    url: str
    tags: list[str] = []


async def _create_from_json(request: web.Request, service: Resources, account: Account) -> web.Response:
    body = await bodies.read_json(request, UrlBody, service.upload_limits.idle_timeout_s)
    if body.tags and parameters.tags(request):
        raise ServiceError("invalid-parameter", "tags must be in the query string or in the body, not in both.")
    tags = clean_tags(body.tags) or parameters.tags(request)
    return await _create_from_source(request, service, account, body.url, tags)


async def _create_from_source(
    request: web.Request, service: Resources, account: Account, url: str, tags: Sequence[str]
) -> web.Response:
    detail, source = parameters.detail(request, "tags", "url"), parse_url(url)
    key = parameters.idempotency_key(request, source)
    try:
        repeated = await service.ingest.find_stored(account.id, key, request_id=request_id(request)) if key else None
        new, image = repeated or await _download(request, service, account, source, tags=tags, key=key)
    except ServiceError as error:
        if error.code == "unsupported-image":
            raise ServiceError("not-an-image", error.detail) from error
        raise
    return await created_response(new, image, service, account, detail)


async def _download(
    request: web.Request,
    service: Resources,
    account: Account,
    source: URL,
    *,
    tags: Sequence[str],
    key: IdempotencyKey | None,
) -> tuple[NewImage, Image | None]:
    with await service.admission.download(account, key) as body:
        with body.slot:
            async with bodies.cancel_on_disconnect(request), service.downloads.get(source, account.id) as origin:
                await service.admission.reserve(body.reservation, origin.length)
                upload = await receiving.receive(origin.chunks(), service.storage, service.download_limits, body)
        return await service.ingest.store(upload, account.id, tags, key, request_id=request_id(request))


async def show(request: web.Request) -> web.Response:
    """GET /v1/images/{id}: the metadata of one image."""
    service = request.app[RESOURCES]
    account = await authenticate(request, service)
    detail = parameters.detail(request)
    image_id = parse_image_id(request.match_info["id"])
    image = await service.image_lookups.submit(ImageQuery(image_id, account.id, detail.include))
    if image is None:
        raise ServiceError("image-not-found")
    view = describe_image(image, detail, service.settings.public_url)
    await add_account([view], service, account, detail)
    return success_response(view)


async def delete(request: web.Request) -> web.Response:
    """GET /v1/images/{id}/delete and DELETE /v1/images/{id}: deletes all of the images, or none."""
    service = request.app[RESOURCES]
    account = await authenticate(request, service)
    detail = parameters.detail(request)
    ids = request.match_info["id"]
    image_ids = parse_image_ids(ids)
    async with service.database.connection() as connection:
        images = await delete_images(connection, image_ids, account.id, detail.include)
    await service.delivery.renditions.delete(image_ids)
    await service.file_removal.remove(image_ids)
    return await changed_response(images, service, account, detail, as_list="," in ids)
