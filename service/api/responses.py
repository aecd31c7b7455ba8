"""Responses as JSON: `{"success": true, "response": …}` or `{"success": false, "error": …}`.

The schemas of the OpenAPI document are generated from the classes here.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC
from typing import Annotated, Literal, TypeVar

import msgspec
from aiohttp import web
from msgspec import UNSET, Meta, UnsetType

from service.accounts.accounts import Account, AccountUnknown, load_account
from service.api.parameters import Detail
from service.api.resources import Resources
from service.config.values import format_size
from service.errors import ServiceError, picture_error
from service.ids import IMAGE_ID_PATTERN
from service.images.models import Image, NewImage
from service.media_types import MIME_TYPES

Value = TypeVar("Value")

_encode = msgspec.json.Encoder().encode


def success_response(
    value: msgspec.Struct | Sequence[msgspec.Struct], *, status: int = 200, no_store: bool = False
) -> web.Response:
    """`no_store` is for a GET that changes something: a cached response would change nothing."""
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
    """Adds the current state of the account, if `with_account` requests it.

    If it cannot be loaded, `account` from the lookup of the API key is shown: a request that has succeeded must not
    become a 503.
    """
    if not detail.with_account:
        return
    with suppress(ServiceError, AccountUnknown):
        async with service.database.connection() as connection:
            account = await load_account(connection, account.id)
    usage = describe_account(account)
    for view in views:
        view.account = usage


# The types of fields, as the OpenAPI document describes them.
Id = Annotated[str, Meta(pattern=f"^{IMAGE_ID_PATTERN.pattern}$")]
Bytes = Annotated[int, Meta(ge=0, description="Bytes.")]
Readable = Annotated[str, Meta(description="In powers of 1024.", examples=["2 GB", "107 MB", "1.9 GB"])]
Pixels = Annotated[int, Meta(ge=1, description="As displayed, with `orientation` applied.")]
Format = Annotated[str, Meta(extra_json_schema={"enum": list(MIME_TYPES)})]
Mime = Annotated[str, Meta(extra_json_schema={"enum": list(MIME_TYPES.values())})]
Time = Annotated[str, Meta(description="UTC.", extra_json_schema={"format": "date-time"})]
Orientation = Annotated[
    int,
    Meta(
        ge=1,
        le=8,
        description="The orientation that was applied to the stored pixels, as an EXIF value: that of EXIF or, for "
        "HEIC and AVIF, the container's rotation and mirroring. 1 is none. `exif.Orientation` is the value in the file "
        "and may differ.",
    ),
]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Url = Annotated[str, Meta(description="Where the picture is served.", extra_json_schema={"format": "uri"})]
Exif = Annotated[msgspec.Raw, Meta(description="By standard tag names.", extra_json_schema={"type": "object"})]
Jpeg = Annotated[str, Meta(description="A JPEG of at most 500 bytes.", extra_json_schema={"contentEncoding": "base64"})]


class StorageUsage(msgspec.Struct, frozen=True):
    max: Bytes
    max_readable: Readable
    used: Bytes
    used_readable: Readable
    remaining: Bytes
    remaining_readable: Readable


class AccountUsage(msgspec.Struct, frozen=True):
    num_images: Annotated[int, Meta(ge=0)]
    storage: StorageUsage


class ProcessingImage(msgspec.Struct):
    """An image that no worker has probed yet."""

    id: Id
    status: Literal["processing"]
    filesize: Bytes
    tags: list[str]
    account: AccountUsage | UnsetType = UNSET


class ReadyImage(msgspec.Struct):
    """Optional fields appear only if they were requested."""

    id: Id
    width: Pixels
    height: Pixels
    filesize: Bytes
    tags: list[str]
    format: Format | UnsetType = UNSET
    mime: Mime | UnsetType = UNSET
    created: Time | UnsetType = UNSET
    orientation: Orientation | UnsetType = UNSET
    pages: Annotated[int, Meta(ge=1)] | UnsetType = UNSET
    has_alpha: bool | UnsetType = UNSET
    sha256: Sha256 | UnsetType = UNSET
    url: Url | UnsetType = UNSET
    exif: Exif | UnsetType = UNSET
    mini_preview: Jpeg | UnsetType = UNSET
    account: AccountUsage | UnsetType = UNSET


ImageView = ReadyImage | ProcessingImage


class ImagePage(msgspec.Struct):
    """One page of a search. `next_cursor` is null on the last page."""

    images: list[ReadyImage]
    next_cursor: str | None
    account: AccountUsage | UnsetType = UNSET


def describe_new(new: NewImage | Image) -> ProcessingImage:
    return ProcessingImage(id=new.id, status="processing", filesize=new.size, tags=list(new.tags))


def describe_image(image: Image, detail: Detail, public_url: str) -> ImageView:
    """Raises the error of an image whose probe failed."""
    if image.state == "failed":
        raise picture_error(image.error or "unsupported-image", image.error_kind)
    if image.state == "pending":
        return describe_new(image)
    return describe_ready(image, detail, public_url)


def describe_ready(image: Image, detail: Detail, public_url: str) -> ReadyImage:
    view = ReadyImage(
        id=image.id,
        width=_require(image.width),
        height=_require(image.height),
        filesize=image.size,
        tags=image.tags,
    )
    if detail.verbose:
        view.format = _require(image.format)
        view.mime = MIME_TYPES[view.format]
        view.created = image.created_at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        view.orientation = _require(image.orientation)
        view.pages = _require(image.pages)
        view.has_alpha = _require(image.has_alpha)
        view.sha256 = image.sha256.hex()
        view.url = f"{public_url.rstrip('/')}/i/{image.id}"
    if detail.with_exif:
        view.exif = msgspec.Raw((image.exif or "{}").encode())
    if detail.with_mini_preview:
        view.mini_preview = base64.b64encode(image.mini_preview or b"").decode()
    return view


def describe_account(account: Account) -> AccountUsage:
    return AccountUsage(
        num_images=account.num_images,
        storage=StorageUsage(
            max=account.max_bytes,
            max_readable=format_size(account.max_bytes),
            used=account.used_bytes,
            used_readable=format_size(account.used_bytes),
            remaining=account.remaining_bytes,
            remaining_readable=format_size(account.remaining_bytes),
        ),
    )


def _require(value: Value | None) -> Value:
    """Returns a value that every ready row has."""
    if value is None:
        raise TypeError("a ready image lacks a value of its probe")
    return value
