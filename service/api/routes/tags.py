"""`/v1/images/{id}/tags`: adds and removes the tags of images."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from aiohttp import web

from service.accounts.accounts import Account
from service.api import parameters
from service.api.middleware import authenticate
from service.api.resources import RESOURCES, Resources
from service.api.responses import changed_response
from service.errors import ServiceError
from service.http.bodies import read_json
from service.ids import parse_image_ids
from service.images.tag_rules import clean_tags
from service.images.updates import change_tags


class TagsBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON body of PUT and DELETE, an alternative to the parameter."""

    tags: list[str]


async def add(request: web.Request) -> web.Response:
    """GET /v1/images/{id}/add_tags and PUT /v1/images/{id}/tags: idempotent."""
    service = request.app[RESOURCES]
    account = await authenticate(request, service)
    return await _change(request, service, account, add=await _read_tags(request, service))


async def remove(request: web.Request) -> web.Response:
    """GET /v1/images/{id}/remove_tags and DELETE /v1/images/{id}/tags: a missing tag is not an error."""
    service = request.app[RESOURCES]
    account = await authenticate(request, service)
    return await _change(request, service, account, remove=await _read_tags(request, service))


async def _change(
    request: web.Request,
    service: Resources,
    account: Account,
    *,
    add: Sequence[str] = (),
    remove: Sequence[str] = (),
) -> web.Response:
    detail = parameters.detail(request, "tags")
    ids = request.match_info["id"]
    image_ids = parse_image_ids(ids)
    async with service.database.connection() as connection:
        images = await change_tags(connection, image_ids, account.id, add=add, remove=remove, include=detail.include)
    return await changed_response(images, service, account, detail, as_list="," in ids)


async def _read_tags(request: web.Request, service: Resources) -> list[str]:
    tags = parameters.tags(request)
    if request.method != "GET" and request.body_exists and request.content_type == "application/json":
        if tags:
            raise ServiceError("invalid-parameter", "tags must be in the query string or in the body, not in both.")
        body = await read_json(request, TagsBody, service.upload_limits.idle_timeout_s)
        tags = clean_tags(body.tags)
    if not tags:
        raise ServiceError("invalid-parameter", "tags is required: one tag, or several separated by commas.")
    return tags
