"""`/v1/images/{id}/tags`: add tags to images, remove them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from aiohttp import web

from service.accounts.accounts import Account
from service.api import bodies, parameters, responses
from service.api.authentication import authenticate
from service.api.resources import resources
from service.errors import ServiceError
from service.ids import parse_image_ids
from service.images.tag_rules import clean_tags
from service.images.updates import change_tags


class GivenTags(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body that PUT and DELETE take instead of the parameter."""

    tags: list[str]


async def add(request: web.Request) -> web.Response:
    """GET /v1/images/{id}/add_tags and PUT /v1/images/{id}/tags: twice is as good as once."""
    account = await authenticate(request)
    return await _change(request, account, add=await _tags(request))


async def remove(request: web.Request) -> web.Response:
    """GET /v1/images/{id}/remove_tags and DELETE /v1/images/{id}/tags: a tag that is not there is no error."""
    account = await authenticate(request)
    return await _change(request, account, remove=await _tags(request))


async def _change(
    request: web.Request, account: Account, *, add: Sequence[str] = (), remove: Sequence[str] = ()
) -> web.Response:
    service = resources(request)
    detail = parameters.detail(request, "tags")
    named = request.match_info["id"]
    image_ids = parse_image_ids(named)
    async with service.database.connection() as connection:
        images = await change_tags(connection, image_ids, account.id, add=add, remove=remove, include=detail.large)
    return await responses.changed(images, service, account, detail, as_list="," in named)


async def _tags(request: web.Request) -> list[str]:
    tags = parameters.tags(request)
    if request.method != "GET" and request.body_exists and request.content_type == "application/json":
        if tags:
            raise ServiceError("invalid-parameter", "Send tags in the query string or in the body, not in both.")
        limits = resources(request).upload_limits
        tags = clean_tags((await bodies.read_json(request, GivenTags, limits.idle_timeout_s)).tags)
    if not tags:
        raise ServiceError("invalid-parameter", "tags is required: one tag, or several with commas between them.")
    return tags
