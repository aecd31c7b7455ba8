"""`/v1/images`: store an image, show one, delete some."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import structlog
from aiohttp import web
from yarl import URL

from service.accounts.accounts import Account
from service.api import bodies, parameters, responses
from service.api.authentication import authenticate
from service.api.middleware import request_id
from service.api.representations import describe_image
from service.api.resources import Resources, resources
from service.deletion.removals import remove_files
from service.downloads.origins import parse_url
from service.errors import ServiceError
from service.http import envelope, multipart
from service.ids import ImageId, parse_image_id, parse_image_ids
from service.images.deletions import delete_images
from service.images.idempotency import IdempotencyKey
from service.images.models import Image, NewImage
from service.images.queries import Wanted
from service.images.tag_rules import clean_tags
from service.uploads import receiving

log = structlog.get_logger("service.api")

# The files are gone in some milliseconds, unless their disk hangs.
_REMOVAL_TIMEOUT_S = 2.0


async def create(request: web.Request) -> web.Response:
    """POST /v1/images: the body, or what the URL in a JSON body leads to, becomes an image."""
    if request.content_type == "application/json":
        return await _create_from_json(request)
    service = resources(request)
    account = await authenticate(request)
    given, key = parameters.UploadParameters(request), parameters.idempotency_key(request)
    bodies.check_content_type(request)
    multipart.check_encoding(request.headers)
    with await service.admission.upload(account, bodies.declared_length(request), key) as body:
        with body.slot:
            chunks = bodies.chunks(request, given.take_field)
            upload = await receiving.receive(chunks, service.storage, service.upload_limits, body)
        new, image = await service.ingest.store(upload, account.id, given.tags, key, request_id=request_id(request))
    return await responses.created(new, image, service, account, given.detail)


async def create_from_url(request: web.Request) -> web.Response:
    """GET /v1/images?url=: what the URL leads to becomes an image."""
    account = await authenticate(request)
    return await _copy(request, account, parameters.url(request), parameters.tags(request))


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON body of POST /v1/images."""

    url: str
    tags: list[str] = []


async def _create_from_json(request: web.Request) -> web.Response:
    account = await authenticate(request)
    source = await bodies.read_json(request, Source, resources(request).upload_limits.idle_timeout_s)
    if source.tags and parameters.tags(request):
        raise ServiceError("invalid-parameter", "Send tags in the query string or in the body, not in both.")
    return await _copy(request, account, source.url, clean_tags(source.tags) or parameters.tags(request))


async def _copy(request: web.Request, account: Account, url: str, tags: Sequence[str]) -> web.Response:
    service = resources(request)
    detail, source = parameters.detail(request, "tags", "url"), parse_url(url)
    key = parameters.idempotency_key(request, source)
    try:
        repeated = await service.ingest.repeat(account.id, key, request_id=request_id(request)) if key else None
        new, image = repeated or await _download(request, account, source, tags, key)
    except ServiceError as error:
        if error.code == "unsupported-image":
            raise ServiceError("not-an-image", error.detail) from error
        raise
    return await responses.created(new, image, service, account, detail)


async def _download(
    request: web.Request, account: Account, source: URL, tags: Sequence[str], key: IdempotencyKey | None
) -> tuple[NewImage, Image | None]:
    service = resources(request)
    with await service.admission.download(account, key) as body:
        with body.slot:
            async with bodies.while_connected(request), service.origins.get(source, account.id) as origin:
                await service.admission.reserve(body.reservation, origin.length)
                upload = await receiving.receive(origin.chunks(), service.storage, service.download_limits, body)
        return await service.ingest.store(upload, account.id, tags, key, request_id=request_id(request))


async def show(request: web.Request) -> web.Response:
    """GET /v1/images/{id}: the metadata of one image."""
    service = resources(request)
    account = await authenticate(request)
    detail = parameters.detail(request)
    image_id = parse_image_id(request.match_info["id"])
    image = await service.finding.submit(Wanted(image_id, account.id, detail.large))
    if image is None:
        raise ServiceError("image-not-found")
    shown = describe_image(image, detail, service.settings.public_url)
    await responses.add_account([shown], service, account, detail)
    return envelope.ok(shown)


async def delete(request: web.Request) -> web.Response:
    """GET /v1/images/{id}/delete and DELETE /v1/images/{id}: all of the images, or none."""
    service = resources(request)
    account = await authenticate(request)
    detail = parameters.detail(request)
    named = request.match_info["id"]
    image_ids = parse_image_ids(named)
    async with service.database.connection() as connection:
        images = await delete_images(connection, image_ids, account.id, detail.large)
    await service.delivery.renditions.delete(image_ids)
    await _remove_files(service, image_ids)
    return await responses.changed(images, service, account, detail, as_list="," in named)


async def _remove_files(service: Resources, image_ids: Sequence[ImageId]) -> None:
    """The images are deleted, so it is no error if a file is left, to the sweep. A disk that hangs keeps nobody waiting
    for long.
    """
    removing = asyncio.create_task(remove_files(service.database, service.storage, service.delivery.files, image_ids))
    service.removals.add(removing)
    removing.add_done_callback(service.removals.discard)
    removing.add_done_callback(_retrieve)
    await asyncio.wait([removing], timeout=_REMOVAL_TIMEOUT_S)


def _retrieve(removing: asyncio.Task[None]) -> None:
    if not removing.cancelled() and (error := removing.exception()) is not None:
        log.warning("removal.failed", first_error=repr(error))
