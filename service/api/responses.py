"""Responses as JSON: `{"success": true, "response": …}` or `{"success": false, "error": …}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import msgspec
from aiohttp import web

from service.accounts.accounts import Account, AccountUnknown, load_account
from service.api.parameters import Detail
from service.api.representations import ImagePage, ImageView, describe_account, describe_image, describe_new
from service.api.resources import Resources
from service.errors import ServiceError
from service.images.models import Image, NewImage

_encode = msgspec.json.Encoder().encode


def success_response(
    value: msgspec.Struct | Sequence[msgspec.Struct], *, status: int = 200, no_store: bool = False
) -> web.Response:
    """`no_store` is for a GET that changes something: served from a cache, it would change nothing."""
    body = _encode({"success": True, "response": value})
    response = web.Response(body=body, status=status, content_type="application/json")
    if no_store:
        response.headers["Cache-Control"] = "no-store"
    return response


def error_response(error: ServiceError, headers: Mapping[str, str] | None = None) -> web.Response:
    body = _encode({"success": False, "error": {"code": error.code, "message": error.message}})
    response = web.Response(body=body, status=error.status, content_type="application/json", headers=headers)
    response.headers["Cache-Control"] = "no-store"
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    if error.status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="daguerre"'
    if error.code == "unsupported-content-encoding":
        response.headers["Accept-Encoding"] = "identity"  # RFC 9110, section 15.5.16
    return response


async def created_response(
    new: NewImage, image: Image | None, service: Resources, account: Account, detail: Detail
) -> web.Response:
    """Returns 200 with the image, or 202 if no worker has probed it yet (`image` is None)."""
    view = describe_new(new) if image is None else describe_image(image, detail, service.settings.public_url)
    await add_account([view], service, account, detail)
    return success_response(view, status=202 if image is None else 200, no_store=True)


async def changed_response(
    images: Sequence[Image], service: Resources, account: Account, detail: Detail, *, as_list: bool
) -> web.Response:
    """Returns the images after a change, each as GET shows it: one object, or a list with `as_list`."""
    views = [describe_image(image, detail, service.settings.public_url) for image in images]
    await add_account(views, service, account, detail)
    return success_response(views if as_list else views[0], no_store=True)


async def add_account(
    views: Sequence[ImageView | ImagePage], service: Resources, account: Account, detail: Detail
) -> None:
    """Adds the account as it is now, if `with_account` asks for it.

    If it cannot be loaded, `account` is shown, as the API key's look-up returned it: a request that has succeeded must
    not become a 503.
    """
    if not detail.with_account:
        return
    with suppress(ServiceError, AccountUnknown):
        async with service.database.connection() as connection:
            account = await load_account(connection, account.id)
    usage = describe_account(account)
    for view in views:
        view.account = usage
